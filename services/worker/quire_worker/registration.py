"""Reports for duty at the scheduler, for as long as the process lives.

Dials in, registers, sends signs of life and passes directives on to the step loop. A scheduler that goes away is
dialled again; the weights stay loaded meanwhile. Knows no plan.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from random import uniform

import grpc

from quire.errors import ConfigError, InvalidRequest, ProtocolMismatch
from quire.rpc.channel import open_channel
from quire.rpc.status import error_from_rpc
from quire.v1 import worker_pb2, worker_pb2_grpc
from quire_worker.step_loop import Assign, Reset, StepLoop

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 2.0


class Registration:
    """Keeps one worker registered."""

    def __init__(self, scheduler: str, registration: worker_pb2.WorkerRegistration, loop: StepLoop) -> None:
        self._scheduler = scheduler
        self._registration = registration
        self._loop = loop
        self._heartbeat_interval_s = 1.0
        self._drained = asyncio.Event()
        self.registered = asyncio.Event()

    async def run(self) -> None:
        """Stays registered until the scheduler drains this worker. Raises `ConfigError` when it is refused for good."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._drained.is_set():
            try:
                await self._serve_once()
                backoff_s = _FIRST_BACKOFF_S
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
                if isinstance(error, ProtocolMismatch | InvalidRequest):
                    raise ConfigError(
                        f"the scheduler at {self._scheduler} refused this worker: {error.message}"
                    ) from error
                if self.registered.is_set():
                    logger.warning(
                        "lost the scheduler", extra={"scheduler": self._scheduler, "why": error.message}
                    )
                    backoff_s = _FIRST_BACKOFF_S
            self.registered.clear()
            await asyncio.sleep(uniform(backoff_s / 2, backoff_s))
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _serve_once(self) -> None:
        async with open_channel(self._scheduler) as channel:
            stub = worker_pb2_grpc.WorkerRegistryServiceStub(channel)
            async for response in stub.Register(self._messages()):
                self._follow(response)

    async def _messages(self) -> AsyncIterator[worker_pb2.RegisterRequest]:
        yield worker_pb2.RegisterRequest(registration=self._registration)
        await self.registered.wait()
        while True:
            await asyncio.sleep(self._heartbeat_interval_s)
            yield worker_pb2.RegisterRequest(
                heartbeat=worker_pb2.WorkerHeartbeat(
                    last_step_id=self._loop.last_step_id, epoch=self._loop.epoch, busy=self._loop.busy
                )
            )

    def _follow(self, response: worker_pb2.RegisterResponse) -> None:
        match response.WhichOneof("message"):
            case "assignment":
                self._take_assignment(response.assignment)
            case "reset":
                self._loop.send(Reset(response.reset.epoch))
            case "drain":
                self._drained.set()
            case None:
                logger.warning("an empty directive from the scheduler")

    def _take_assignment(self, assignment: worker_pb2.WorkerAssignment) -> None:
        self._heartbeat_interval_s = assignment.heartbeat_interval_ms / 1000
        endpoint = assignment.data_endpoint.replace("//0.0.0.0:", f"//{_host_of(self._scheduler)}:")
        self._loop.send(Assign(endpoint, assignment.routing_id, assignment.group_id, assignment.epoch))
        self.registered.set()
        logger.info("registered", extra={"scheduler": self._scheduler, "group": assignment.group_id})


def _host_of(address: str) -> str:
    return address.removeprefix("dns:///").rpartition(":")[0]
