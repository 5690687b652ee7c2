"""The core and one simulated worker group, stepped by hand: requests have names, and what they got can be looked up.

Knows no expectation; `answer` checks only that every token continues its sequence.
"""

from collections import deque

from quire_scheduler.core import (
    BeamParams,
    CoreLimits,
    FinishReason,
    GroupCapacity,
    OwnerEvents,
    OwnerId,
    Request,
    Sampling,
    Scheduler,
)

from quire.wire.plan import StepPlan
from tests.doubles.simulated_worker import SimulatedWorker

OWNER = OwnerId(1)
GROUP = 0


def capacity_of(
    *,
    num_blocks: int = 4096,
    block_size: int = 16,
    max_num_seqs: int = 64,
    max_num_batched_tokens: int = 512,
    max_model_len: int | None = None,
) -> GroupCapacity:
    """A group that can hold a context as long as its whole pool, unless told otherwise."""
    return GroupCapacity(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_model_len=max_model_len or num_blocks * block_size,
        vocab_size=1000,
    )


class CoreDriver:
    """Plans and answers; a step is what `answer` enters."""

    def __init__(self, capacity: GroupCapacity, limits: CoreLimits | None = None) -> None:
        self.core = Scheduler(limits or CoreLimits())
        self.capacity = capacity
        self.epoch = 1
        self.core.add_group(GROUP, self.epoch, capacity)
        self.worker = SimulatedWorker(
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_num_seqs=capacity.max_num_seqs,
            vocab_size=capacity.vocab_size,
        )
        self.sent: deque[StepPlan] = deque()
        self.names: dict[int, str] = {}
        self.tokens: dict[tuple[str, int], list[int]] = {}
        self.finished: dict[tuple[str, int], FinishReason] = {}
        self.failed: dict[str, str] = {}

    def add(
        self,
        name: str,
        prompt: list[int],
        max_tokens: int,
        *,
        priority: int = 0,
        beam_params: BeamParams | None = None,
        **sampling: object,
    ) -> None:
        """Adds a request; `sampling` are fields of `Sampling`."""
        handle = len(self.names) + 1
        self.names[handle] = name
        self.core.add(
            Request(
                owner=OWNER,
                handle=handle,
                request_id=name,
                prompt_token_ids=prompt,
                priority=priority,
                beam_params=beam_params,
                sampling=Sampling(max_tokens=max_tokens, **sampling),  # type: ignore[arg-type]
            )
        )

    def abort(self, name: str, index: int | None = None) -> bool:
        """Aborts by name."""
        handle = next(handle for handle, each in self.names.items() if each == name)
        return self.core.abort(OWNER, handle, index)

    def plan(self) -> StepPlan | None:
        """Cuts one plan and sends it; names and counts of its blocks are left until `core.settle` or whoever asks for them."""
        plan = self.core.schedule(GROUP)
        if plan is not None:
            self.sent.append(plan)
        return plan

    def answer(self) -> OwnerEvents:
        """Executes the oldest plan and enters its result; returns what that brought."""
        self.core.apply(self.worker.execute(self.sent.popleft()))
        return self.collect()

    def step(self) -> OwnerEvents:
        """Fills the pipeline, then answers its oldest plan."""
        while self.plan() is not None:
            pass
        return self.answer()

    def run(self) -> int:
        """Steps until nothing is left; returns how many steps that took."""
        num_steps = 0
        while self.core.has_work(GROUP) or self.sent:
            self.step()
            num_steps += 1
        return num_steps

    def fail(self) -> None:
        """The worker did not execute the latest plan in flight."""
        self.core.fail(GROUP, self.sent.pop().step_id)

    def reset(self) -> None:
        """The worker starts over in a new epoch."""
        self.epoch += 1
        self.sent.clear()
        self.worker.drop_slots()
        self.core.reset(GROUP, self.epoch)

    def collect(self) -> OwnerEvents:
        """Drains and enters the events."""
        events = self.core.drain_events().get(OWNER, OwnerEvents())
        at = 0
        for handle, index, first, count in zip(
            events.handles, events.indexes, events.first_token_indexes, events.num_tokens, strict=True
        ):
            got = self.tokens.setdefault((self.names[handle], index), [])
            assert first == len(got), "a token was repeated or is missing"
            got += events.token_ids[at : at + count]
            at += count
        for row, reason in zip(events.finished_rows, events.finish_reasons, strict=True):
            self.finished[self.names[events.handles[row]], events.indexes[row]] = reason
        for failure in events.failures:
            self.failed[self.names[failure.handle]] = failure.message
        return events
