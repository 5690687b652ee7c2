"""What the process knows of one registered worker group, beside what the core knows."""

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from quire.v1 import worker_pb2
from quire_scheduler.core import GroupCapacity
from quire_scheduler.plan_timing import PlanTiming


class GroupState(Enum):
    """Where a group stands."""

    JOINING = "joining"
    """It has an epoch but has not said yet that it is ready for it."""
    LIVE = "live"


@dataclass(slots=True, kw_only=True)
class WorkerGroup:
    """One registered worker (one rank today) and the path to it."""

    group_id: int
    worker_id: str
    routing_id: bytes
    epoch: int
    model: worker_pb2.ModelSpec
    capacity: GroupCapacity
    state: GroupState = GroupState.JOINING
    directives: "asyncio.Queue[worker_pb2.RegisterResponse]" = field(
        default_factory=lambda: asyncio.Queue(64)
    )
    """What its registration stream has to send."""
    last_heard: float = 0.0
    last_progress: float = 0.0
    """When a step was last answered, or first sent into an empty pipeline."""
    num_idle_heartbeats: int = 0
    """Heartbeats in a row that found the worker idle while steps are in flight: frames were lost."""
    timing: PlanTiming = field(default_factory=PlanTiming)
    put_off: "asyncio.TimerHandle | None" = None
    """Cuts the plan that is not due yet."""

    def start_over(self) -> None:
        """Forgets the steps in flight: the group has a new epoch, or is gone."""
        self.timing.forget()
        if self.put_off is not None:
            self.put_off.cancel()
            self.put_off = None

    def send_reset(self) -> None:
        """Tells the worker of its new epoch; older resets that were not sent yet are overtaken by it."""
        while not self.directives.empty():
            self.directives.get_nowait()
        self.directives.put_nowait(worker_pb2.RegisterResponse(reset=worker_pb2.GroupReset(epoch=self.epoch)))

    def send_drain(self) -> None:
        """Tells the worker that no further plan will come."""
        self.directives.put_nowait(worker_pb2.RegisterResponse(drain=worker_pb2.WorkerDrain()))
