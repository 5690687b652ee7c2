"""The engine loop: the only place of the scheduler with a clock, tasks and sockets.

Moves plans from the core to the workers and answers back, and hands what each step brought to its owners. Every
event (an answer, a request, an abort, a group) ends in `kick`, which runs one pump soon; the pump keeps each group's
pipeline full and never waits. What may not go in here: any decision about a request (core), any message to a client
(owners), any bookkeeping of registration (registry).
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic, time_ns

from quire.telemetry.tracing import NO_TRACING, Tracing
from quire.v1 import scheduler_pb2
from quire.wire.codec import encode_plan
from quire.wire.result import StepResult, WorkerReady
from quire_scheduler.core import BrokenAnswer, OwnerId, Request, Scheduler, StaleAnswer
from quire_scheduler.data_plane import Answer, DataPlane, WorkerUnreachable
from quire_scheduler.engine_trace import EngineTrace
from quire_scheduler.owner import Owner
from quire_scheduler.worker_group import GroupState, WorkerGroup

logger = logging.getLogger(__name__)

IDLE_HEARTBEATS_BEFORE_RESET = 2
"""A worker that is idle this often in a row, with steps in flight, never got them or lost their answers."""

STALL_LIMIT_S = 30.0
"""Without an answer for this long while steps are in flight, the health answer is NOT_SERVING."""


class EngineLoop:
    """Drives one core and its worker groups."""

    def __init__(
        self, core: Scheduler, data_plane: DataPlane, first_epoch: int, tracing: Tracing = NO_TRACING
    ) -> None:
        self.core = core
        self.data_plane = data_plane
        self.groups: dict[int, WorkerGroup] = {}
        self._owners: dict[OwnerId, Owner] = {}
        self._num_owners = 0
        self._last_epoch = first_epoch
        self._step_id = 0
        self._pump_is_due = False
        self._on_change: list[Callable[[], None]] = []
        self._trace = EngineTrace(tracing)

    async def run(self) -> None:
        """Receives answers until cancelled."""
        async for routing_id, answer in self.data_plane.answers():
            group = self.groups.get(answer.group_id)
            if group is None or group.routing_id != routing_id:
                continue
            self._receive(group, answer)

    def now(self) -> float:
        """The clock, in seconds."""
        return monotonic()

    def next_epoch(self) -> int:
        """An epoch larger than any that this process, or one before it, gave out."""
        self._last_epoch += 1
        return self._last_epoch

    def add_owner(self, owner: Owner) -> OwnerId:
        """Numbers somebody who will add requests."""
        self._num_owners += 1
        owner_id = OwnerId(self._num_owners)
        self._owners[owner_id] = owner
        return owner_id

    def remove_owner(self, owner_id: OwnerId) -> None:
        """Forgets an owner; what it still has is aborted."""
        self._owners.pop(owner_id, None)
        if self.core.abort_owner(owner_id):
            self.kick()

    def add(self, request: Request, *, traceparent: str = "", model: str = "") -> None:
        """Takes a request, traced if its parent asks for it; `kick` follows. Raises `RequestRefused`."""
        request.traced = self._trace.wants(traceparent)
        self.core.add(request, monotonic())
        if request.traced:
            self._trace.open(request, traceparent, model, time_ns())

    def add_group(self, group: WorkerGroup) -> None:
        """A worker registered; it is used as soon as it says that it is ready."""
        self.groups[group.group_id] = group
        self.touch(group)

    def drop_group(self, group: WorkerGroup, why: str) -> None:
        """A worker is gone: what ran there waits again."""
        if self.groups.pop(group.group_id, None) is None:
            return
        logger.warning("worker dropped", extra={"worker": group.worker_id, "why": why})
        self.data_plane.revoke(group.routing_id)
        group.start_over()
        self._trace.void_steps(group.group_id, why, time_ns())
        if self.core.has_group(group.group_id):
            self.core.remove_group(group.group_id)
        self._announce()
        self.kick()

    def reset_group(self, group: WorkerGroup, why: str) -> None:
        """Frames were lost or contradict each other: the group starts over in a new epoch."""
        group.epoch = self.next_epoch()
        group.state = GroupState.JOINING
        group.start_over()
        logger.warning(
            "worker group reset", extra={"worker": group.worker_id, "epoch": group.epoch, "why": why}
        )
        self._trace.void_steps(group.group_id, why, time_ns())
        if self.core.has_group(group.group_id):
            self.core.reset(group.group_id, group.epoch)
        group.send_reset()
        self.touch(group)
        self._announce()
        self.kick()

    def heartbeat(self, group: WorkerGroup, *, busy: bool) -> None:
        """A sign of life; an idle worker with steps in flight has lost frames."""
        group.last_heard = monotonic()
        waits = group.state is GroupState.LIVE and self.core.num_in_flight(group.group_id) > 0
        group.num_idle_heartbeats = group.num_idle_heartbeats + 1 if waits and not busy else 0
        if group.num_idle_heartbeats > IDLE_HEARTBEATS_BEFORE_RESET:
            self.reset_group(group, "it is idle while steps are in flight")

    def touch(self, group: WorkerGroup) -> None:
        """Restarts the group's clocks."""
        group.last_heard = group.last_progress = monotonic()
        group.num_idle_heartbeats = 0

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back whenever a group comes, goes or is reset."""
        self._on_change.append(callback)

    def tell_state(self, state: scheduler_pb2.ServingState) -> None:
        """Pushes a serving state to every owner."""
        for owner in list(self._owners.values()):
            owner.state_changed(state)

    @property
    def num_live_groups(self) -> int:
        """Groups that execute steps."""
        return sum(group.state is GroupState.LIVE for group in self.groups.values())

    @property
    def makes_progress(self) -> bool:
        """Whether some group is live and none with steps in flight has been silent for too long."""
        limit = monotonic() - STALL_LIMIT_S
        live = [group for group in self.groups.values() if group.state is GroupState.LIVE]
        return bool(live) and all(
            group.last_progress > limit or not self.core.num_in_flight(group.group_id) for group in live
        )

    def kick(self) -> None:
        """Something changed: pump once, after what is being handled now."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_is_due = False
        now = monotonic()
        for group in list(self.groups.values()):
            if group.state is GroupState.LIVE:
                self._fill_pipeline(group, now)
        if self._trace.is_recording:
            self._record_milestones(now)
        self._deliver()
        self.core.settle()

    def _fill_pipeline(self, group: WorkerGroup, now: float) -> None:
        if self.core.num_in_flight(group.group_id) == 0:
            group.last_progress = now
            group.num_idle_heartbeats = 0
        while (
            not self._puts_off(group, now) and (plan := self.core.schedule(group.group_id, now)) is not None
        ):
            group.timing.sent(plan.num_tokens, now)
            if self._trace.is_recording:
                self._record_milestones(now)
                requests = self.core.traced_in_newest_step(group.group_id)
                self._trace.begin_step(plan, requests, time_ns())
            try:
                self.data_plane.send(group.routing_id, encode_plan(plan))
            except WorkerUnreachable as error:
                self.drop_group(group, f"a plan could not be sent: {error}")
                return

    def _puts_off(self, group: WorkerGroup, now: float) -> bool:
        """Whether the next plan can wait for who may still come; then the group is pumped again when it is due."""
        if group.put_off is not None:
            group.put_off.cancel()
            group.put_off = None
        due_at = group.timing.due_at(self.core.num_running(group.group_id), self.core.num_waiting_tokens)
        if due_at <= now:
            return False
        group.put_off = asyncio.get_running_loop().call_later(due_at - monotonic(), self._pump)
        return True

    def _receive(self, group: WorkerGroup, answer: Answer) -> None:
        if isinstance(answer, StepResult):
            self._enter(group, answer)
        elif answer.epoch != group.epoch:
            return
        elif isinstance(answer, WorkerReady):
            self._make_live(group)
        else:
            self.reset_group(group, f"it refused step {answer.step_id}: {answer.error}")

    def _make_live(self, group: WorkerGroup) -> None:
        if not self.core.has_group(group.group_id):
            self.core.add_group(group.group_id, group.epoch, group.capacity)
        group.state = GroupState.LIVE
        self.touch(group)
        logger.info("worker group live", extra={"worker": group.worker_id, "epoch": group.epoch})
        self._announce()
        self.kick()

    def _enter(self, group: WorkerGroup, result: StepResult) -> None:
        now = group.last_progress = monotonic()
        group.num_idle_heartbeats = 0
        try:
            self.core.apply(result, now)
        except StaleAnswer:
            return
        except BrokenAnswer as error:
            self.reset_group(group, str(error))
            return
        group.timing.answered(now)
        if group.put_off is not None and self.core.num_in_flight(group.group_id) == 0:
            group.timing.came_late()
        if self._trace.is_recording:
            self._trace.end_step(result.group_id, result.epoch, result.step_id, time_ns())
        self._pump()

    def _record_milestones(self, now: float) -> None:
        self._trace.record(self.core.drain_milestones(), now, time_ns())

    def _deliver(self) -> None:
        self._step_id += 1
        for owner_id, events in self.core.drain_events().items():
            owner = self._owners.get(owner_id)
            if owner is not None:
                owner.deliver(self._step_id, events)

    def _announce(self) -> None:
        for callback in self._on_change:
            callback()
