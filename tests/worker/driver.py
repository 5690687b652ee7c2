"""Scheduler core and runner in one process: every plan and result crosses the real codec, no socket does.

Plans are cut ahead of their results exactly as far as `pipeline_depth` allows, so that a test sees the pipeline of
production without its timing.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from quire_scheduler.core import BeamParams, CoreLimits, GroupCapacity, Request, Sampling, Scheduler
from quire_scheduler.core.event import OwnerEvents, RequestFailure
from quire_scheduler.core.request import FinishReason, OwnerId
from quire_scheduler.core.stats import CoreStats
from quire_worker.loading import LoadedModel
from quire_worker.pending_result import PendingResult
from quire_worker.runner import Runner

from quire.v1 import worker_pb2
from quire.wire.codec import decode_answer, decode_plan, encode_plan, encode_result
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

_OWNER = OwnerId(1)
_GROUP = 1
_EPOCH = 7
_MAX_STEPS = 20_000


@dataclass
class Output:
    """What one sequence brought."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, float]] = field(default_factory=list)
    """Per token: the drawn token and its alternatives."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    cumulative_logprob: float | None = None
    """Of a beam, like its score."""
    score: float | None = None


class Driver:
    """One scheduler core over one runner."""

    def __init__(
        self,
        runner: Runner,
        capacity: worker_pb2.WorkerCapacity,
        spec: worker_pb2.ModelSpec,
        *,
        pipeline_depth: int = 2,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
    ) -> None:
        runner.drop_slots()
        self._runner = runner
        self._core = Scheduler(CoreLimits(pipeline_depth=pipeline_depth))
        self._core.add_group(
            _GROUP,
            _EPOCH,
            GroupCapacity(
                num_blocks=capacity.num_blocks,
                block_size=capacity.block_size,
                max_num_seqs=max_num_seqs or capacity.max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens or capacity.max_num_batched_tokens,
                max_model_len=spec.max_model_len,
                vocab_size=spec.vocab_size,
            ),
        )
        self._handles = 0
        self._outputs: dict[tuple[int, int], Output] = {}
        self.plans: list[StepPlan] = []
        self.failures: dict[int, RequestFailure] = {}
        """By handle."""
        self.peak_used_blocks = 0
        self.prompt_logprobs: dict[int, list[list[tuple[int, float, int]]]] = {}
        """By handle: per token of the prompt, from its second on, (token, log-probability, rank) of each entry."""

    @classmethod
    def of(cls, loaded: LoadedModel, **options: int) -> "Driver":
        """A driver over a loaded model."""
        return cls(loaded.runner, loaded.capacity, loaded.spec, **options)

    @property
    def stats(self) -> CoreStats:
        """The core's counters."""
        return self._core.stats()

    def add(
        self,
        prompt_token_ids: list[int],
        sampling: Sampling,
        resumed: tuple[tuple[int, list[int]], ...] = (),
        beam_params: BeamParams | None = None,
    ) -> int:
        """Adds a request; returns its handle."""
        self._handles += 1
        for index, tokens in resumed:
            self._outputs[self._handles, index] = Output(list(tokens))
        self._core.add(
            Request(
                owner=_OWNER,
                handle=self._handles,
                request_id=f"request-{self._handles}",
                prompt_token_ids=prompt_token_ids,
                sampling=sampling,
                resumed=resumed,
                beam_params=beam_params,
            )
        )
        return self._handles

    def run(self, *, num_steps: int = _MAX_STEPS, may_fail: bool = False) -> dict[tuple[int, int], Output]:
        """Steps until nothing is left; outputs by (handle, sequence index).

        Like the step loop, it gives the runner a plan as soon as it is cut, and reads results in order. A run of fewer
        steps ends with what is in flight lost, as with its worker.
        """
        in_flight: deque[PendingResult] = deque()
        for _ in range(num_steps):
            while (plan := self._core.schedule(_GROUP, 0.0)) is not None:
                self.plans.append(plan)
                in_flight.append(self._runner.execute(decode_plan(encode_plan(plan))))
            self._core.settle()
            if not in_flight:
                break
            answer = decode_answer(encode_result(in_flight.popleft()()))
            self._runner.draw_if_ready()
            assert isinstance(answer, StepResult)
            self._core.apply(answer, 0.0)
            self.peak_used_blocks = max(self.peak_used_blocks, self.stats.num_used_blocks)
            self._collect()
        assert may_fail or not self.failures, self.failures
        if num_steps == _MAX_STEPS:
            assert not self._core.has_work(_GROUP), "the core has work left and plans nothing"
            ended = [out for (handle, _), out in self._outputs.items() if handle not in self.failures]
            assert all(output.finish_reason is not None for output in ended)
        return self._outputs

    def lose_worker(self) -> None:
        """What ran there waits again; the worker holds nothing and is in a new epoch."""
        self._runner.drop_slots()
        self._core.reset(_GROUP, self._core.epoch(_GROUP) + 1)

    def generate(self, requests: Iterable[tuple[list[int], Sampling]]) -> list[Output]:
        """Runs requests together; their first sequences, in order."""
        handles = [self.add(prompt, sampling) for prompt, sampling in requests]
        outputs = self.run()
        return [outputs[handle, 0] for handle in handles]

    def _collect(self) -> None:
        for events in self._core.drain_events().values():
            self.failures |= {failure.handle: failure for failure in events.failures}
            self._collect_rows(events)
            self._collect_prompts(events)

    def _collect_prompts(self, events: OwnerEvents) -> None:
        at = 0
        for handle, first, num_tokens, width in zip(
            events.prompt_handles, events.prompt_first_positions, events.prompt_num_tokens, events.prompt_entries,
            strict=True,
        ):  # fmt: skip
            tokens = self.prompt_logprobs.setdefault(handle, [])
            assert first == 1 + len(tokens)
            for _ in range(num_tokens):
                columns = (
                    events.prompt_logprob_ids,
                    events.prompt_logprob_values,
                    events.prompt_logprob_ranks,
                )
                tokens.append(list(zip(*(column[at : at + width] for column in columns), strict=True)))
                at += width

    def _collect_rows(self, events: OwnerEvents) -> None:
        token_at = entry_at = 0
        entries_of_row = dict(zip(events.logprob_rows, events.logprob_entries, strict=True))
        for row, key in enumerate(zip(events.handles, events.indexes, strict=True)):
            output = self._outputs.setdefault(key, Output())
            num_tokens = events.num_tokens[row]
            if num_tokens:
                assert events.first_token_indexes[row] == len(output.token_ids)
            output.token_ids += events.token_ids[token_at : token_at + num_tokens]
            token_at += num_tokens
            for _ in range(num_tokens if row in entries_of_row else 0):
                end = entry_at + entries_of_row[row]
                ids, values = events.logprob_ids[entry_at:end], events.logprob_values[entry_at:end]
                output.logprobs.append(dict(zip(ids, values, strict=True)))
                entry_at = end
        for row, logprob, score in zip(
            events.beam_rows, events.beam_logprobs, events.beam_scores, strict=True
        ):
            output = self._outputs[events.handles[row], events.indexes[row]]
            output.cumulative_logprob, output.score = logprob, score
        for at, row in enumerate(events.finished_rows):
            output = self._outputs[events.handles[row], events.indexes[row]]
            assert output.finish_reason is None, "a sequence ended twice"
            output.finish_reason = events.finish_reasons[at]
            stop = events.stop_token_ids_plus_one[at]
            output.stop_token_id = stop - 1 if stop else None
