"""The order of a pump: plans are sent and events told first, then the core does what neither waits for."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from quire_scheduler.core import CoreLimits, GroupCapacity, OwnerEvents, Request, Sampling, Scheduler
from quire_scheduler.data_plane import Answer
from quire_scheduler.loop import EngineLoop
from quire_scheduler.worker_group import WorkerGroup

from quire.v1 import scheduler_pb2, worker_pb2
from quire.wire.codec import decode_plan
from quire.wire.column import Buffer
from quire.wire.result import WorkerReady
from tests.doubles.simulated_worker import SimulatedWorker

_GROUP = 3
_ROUTE = b"worker"
_CAPACITY = GroupCapacity(
    num_blocks=64, block_size=4, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=64, vocab_size=1000
)


class _Surroundings:
    """A worker, the way to it, and the owner of all requests; notes whether the core had settled when each was told."""

    def __init__(self, core: Scheduler) -> None:
        self.core = core
        self.had_settled: list[tuple[str, bool]] = []
        self.has_ended = asyncio.Event()
        self._answers: asyncio.Queue[Answer] = asyncio.Queue()
        self._answers.put_nowait(WorkerReady(group_id=_GROUP, epoch=1))
        self._worker = SimulatedWorker(
            num_blocks=_CAPACITY.num_blocks,
            block_size=_CAPACITY.block_size,
            max_num_seqs=_CAPACITY.max_num_seqs,
            vocab_size=_CAPACITY.vocab_size,
        )

    async def answers(self) -> AsyncIterator[tuple[bytes, Answer]]:
        """The worker's."""
        while True:
            yield _ROUTE, await self._answers.get()

    def send(self, routing_id: bytes, frames: Sequence[Buffer]) -> None:
        """A plan leaves."""
        self.had_settled.append(("plan", self.is_settled()))
        self._answers.put_nowait(self._worker.execute(decode_plan(list(frames))))

    def deliver(self, step_id: int, events: OwnerEvents) -> None:
        """Events are told."""
        self.had_settled.append(("events", self.is_settled()))
        if events.finished_rows:
            self.has_ended.set()

    def state_changed(self, state: scheduler_pb2.ServingState) -> None:
        """Nobody asks here."""

    def is_settled(self) -> bool:
        """Whether all blocks have their names and counts."""
        kv = self.core._groups[_GROUP].kv
        return not kv._unnamed and not kv.pool._uncounted


@pytest.mark.parametrize("max_tokens", [1, 6])
def test_blocks_are_named_and_counted_behind_plans_and_events_but_before_the_loop_rests(
    max_tokens: int,
) -> None:
    async def serve() -> None:
        core = Scheduler(CoreLimits())
        around = _Surroundings(core)
        loop = EngineLoop(core, around, first_epoch=1)  # type: ignore[arg-type]
        loop.add_group(
            WorkerGroup(
                group_id=_GROUP,
                worker_id="worker",
                routing_id=_ROUTE,
                epoch=1,
                model=worker_pb2.ModelSpec(),
                capacity=_CAPACITY,
            )
        )
        owner = loop.add_owner(around)
        loop.add(
            Request(
                owner=owner,
                handle=1,
                request_id="1",
                prompt_token_ids=list(range(13)),  # type: ignore[arg-type]
                sampling=Sampling(max_tokens=max_tokens),
            )
        )
        task = asyncio.create_task(loop.run())
        await asyncio.wait_for(around.has_ended.wait(), 10)
        assert around.is_settled()
        assert around.had_settled[0] == ("plan", False)
        assert around.had_settled[-1] == ("events", False)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(serve())
