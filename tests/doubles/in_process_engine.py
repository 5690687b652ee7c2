"""The scheduler core and a worker's runner in one process, over the real wire form: no socket, no clock.

Drives any `execute(plan)` that launches a step and returns a handle that waits for its result; used by tests and by
benchmarks of the worker alone. As many steps are in flight on the device as the pipeline is deep: plan N+1 is launched
before the result of plan N is waited for.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quire_scheduler.core import (
    CoreLimits,
    FinishReason,
    GroupCapacity,
    OwnerId,
    Request,
    Sampling,
    Scheduler,
)

from quire.wire.codec import decode_answer, decode_plan, encode_plan, encode_result
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

if TYPE_CHECKING:
    from quire_worker.loading import LoadedModel

OWNER = OwnerId(1)
GROUP = 0


@dataclass
class Output:
    """What one sequence brought."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[list[tuple[int, float, int]]] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class InProcessEngine:
    """Runs requests to their end."""

    def __init__(
        self,
        execute: Callable[[StepPlan], Callable[[], StepResult]],
        capacity: GroupCapacity,
        *,
        after_answer: Callable[[], None] | None = None,
        pipeline_depth: int = 2,
        caching: bool = True,
        max_num_prefill_tokens_while_decoding: int | None = None,
    ) -> None:
        self.core = Scheduler(
            CoreLimits(
                pipeline_depth=pipeline_depth,
                enable_prefix_caching=caching,
                max_num_requests=100_000,
                max_num_prefill_tokens_while_decoding=max_num_prefill_tokens_while_decoding,
            )
        )
        self.core.add_group(GROUP, 1, capacity)
        self._execute = execute
        self._after_answer = after_answer
        self._pending: deque[Callable[[], StepResult]] = deque()
        self._num_requests = 0
        self.num_live = 0
        """Sequences that have not ended."""
        self.cached_tokens: dict[int, int] = {}
        """By handle: prompt tokens that were found in the prefix cache."""
        self.outputs: dict[tuple[int, int], Output] = {}

    @classmethod
    def of(cls, loaded: "LoadedModel", **limits: Any) -> "InProcessEngine":
        """A fresh core over a loaded model, whose slots it empties; `limits` are those of the constructor."""
        loaded.runner.drop_slots()
        capacity = GroupCapacity(
            num_blocks=loaded.capacity.num_blocks,
            block_size=loaded.capacity.block_size,
            max_num_seqs=loaded.capacity.max_num_seqs,
            max_num_batched_tokens=loaded.capacity.max_num_batched_tokens,
            max_model_len=loaded.spec.max_model_len,
            vocab_size=loaded.spec.vocab_size,
        )
        return cls(loaded.runner.execute, capacity, after_answer=loaded.runner.draw_if_ready, **limits)

    def add(self, prompt_token_ids: list[int], sampling: Sampling) -> int:
        """Adds a request; returns its handle."""
        self._num_requests += 1
        handle = self._num_requests
        self.core.add(
            Request(
                owner=OWNER,
                handle=handle,
                request_id=str(handle),
                prompt_token_ids=prompt_token_ids,
                sampling=sampling,
            )
        )
        for index in range(sampling.n):
            self.outputs[handle, index] = Output()
        self.num_live += sampling.n
        return handle

    @property
    def oldest_is_ready(self) -> bool:
        """Whether the oldest launched step can be answered without waiting for a device."""
        return self._pending[0].is_ready

    def fill_pipeline(self) -> None:
        """Launches steps until the pipeline is full or nothing can advance."""
        while (plan := self.core.schedule(GROUP)) is not None:
            self._pending.append(self._execute(decode_plan(encode_plan(plan))))

    def step(self) -> bool:
        """Fills the pipeline and answers its oldest step; False when nothing is left to do."""
        self.fill_pipeline()
        if not self._pending:
            return False
        self.core.settle()
        result = self._pending.popleft()()
        if self._after_answer is not None:
            self._after_answer()
        answer = decode_answer(encode_result(result))
        assert isinstance(answer, StepResult)
        self.core.apply(answer)
        self._collect()
        return True

    def run(self) -> dict[tuple[int, int], Output]:
        """Runs until every request has ended."""
        while self.step():
            pass
        assert self.core.stats().num_requests == 0
        return self.outputs

    def _collect(self) -> None:
        for events in self.core.drain_events().values():
            assert not events.failures, events.failures
            entries = events.entries_per_token() or [0] * len(events.handles)
            at = entry_at = 0
            for handle, index, first, count, num_entries in zip(
                events.handles,
                events.indexes,
                events.first_token_indexes,
                events.num_tokens,
                entries,
                strict=True,
            ):
                output = self.outputs[handle, index]
                assert first == len(output.token_ids)
                output.token_ids += events.token_ids[at : at + count]
                at += count
                for _ in range(count if num_entries else 0):
                    stop = entry_at + num_entries
                    output.logprobs.append(
                        list(
                            zip(
                                events.logprob_ids[entry_at:stop],
                                events.logprob_values[entry_at:stop],
                                events.logprob_ranks[entry_at:stop],
                                strict=True,
                            )
                        )
                    )
                    entry_at = stop
            for row, reason in zip(events.finished_rows, events.finish_reasons, strict=True):
                self.outputs[events.handles[row], events.indexes[row]].finish_reason = reason
            self.num_live -= len(events.finished_rows)
            self.cached_tokens.update(zip(events.cached_handles, events.cached_tokens, strict=True))
