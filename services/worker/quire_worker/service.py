"""WorkerService: what a worker says of itself."""

from time import monotonic

import grpc

from quire.v1 import worker_pb2, worker_pb2_grpc
from quire_worker.loading import LoadedModel
from quire_worker.registration import Registration
from quire_worker.step_loop import StepLoop


class WorkerService(worker_pb2_grpc.WorkerServiceServicer):
    """Answers from plain attributes; never waits for a step."""

    def __init__(
        self, worker_id: str, loaded: LoadedModel, loop: StepLoop, registration: Registration
    ) -> None:
        self._worker_id = worker_id
        self._loaded = loaded
        self._loop = loop
        self._registration = registration

    async def GetStatus(
        self, request: worker_pb2.GetStatusRequest, context: grpc.aio.ServicerContext
    ) -> worker_pb2.GetStatusResponse:
        """Load, capacity and progress of this moment."""
        loop = self._loop
        idle_ms = (
            0 if loop.last_step_end is None or loop.busy else int(1000 * (monotonic() - loop.last_step_end))
        )
        return worker_pb2.GetStatusResponse(
            worker_id=self._worker_id,
            model=self._loaded.spec,
            capacity=self._loaded.capacity,
            registered=self._registration.registered.is_set(),
            epoch=loop.epoch,
            num_steps=loop.num_steps,
            num_used_slots=self._loaded.runner.num_used_slots,
            idle_ms=idle_ms,
        )
