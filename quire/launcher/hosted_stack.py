"""A stack that belongs to this Python process: started from it, supervised on its background loop, ended with it."""

import argparse
import asyncio
import contextlib
import os
from time import monotonic, sleep
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.background import background_loop
from quire.errors import Unavailable
from quire.launcher.option import stack_tls
from quire.launcher.stack import Stack
from quire.rpc.channel import open_blocking_channel

_SERVICE = "quire.v1.GenerationService"
_READY_POLL_S = 0.05
_READY_TIMEOUT_S = 600.0


class HostedStack:
    """Started and stopped by blocking calls from any thread."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._stack = Stack(options)
        self._tls = stack_tls(options)
        self._loop = background_loop()
        self._owner = os.getpid()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def address(self) -> str:
        """Where clients reach it."""
        return self._stack.address

    @property
    def scheduler_address(self) -> str:
        """Where its scheduler is, for statistics."""
        return self._stack.scheduler_address

    def start(self) -> None:
        """Returns when a model is served. Raises `ConfigError` or `Unavailable`, and then has left no process."""
        try:
            self._loop.call(self._start())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Ends all processes, in the order that leaves nobody waiting. A second call does nothing."""
        if os.getpid() == self._owner:
            self._loop.call_at_last(self._stop())

    async def _start(self) -> None:
        await self._stack.start()
        self._watching = asyncio.create_task(self._stack.supervise())
        # Asked from another thread, by a channel that no event loop polls: the caller's own loop may use grpc as well.
        if not await asyncio.to_thread(self._serves_in_time):
            raise Unavailable(f"the stack served no model within {_READY_TIMEOUT_S:.0f} s")

    def _serves_in_time(self) -> bool:
        deadline = monotonic() + _READY_TIMEOUT_S
        while not self._is_healthy():
            if monotonic() > deadline or self._stopping:
                return False
            sleep(_READY_POLL_S)
        return True

    def _is_healthy(self) -> bool:
        """What a later look at its health would say, so that a program which began with one sees no other answer."""
        request = health_pb2.HealthCheckRequest(service=_SERVICE)
        with open_blocking_channel(self.address, tls=self._tls) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # it gets its methods when it is made
            try:
                answer = stub.Check(request, timeout=5)
            except grpc.RpcError:
                return False
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    async def _stop(self) -> None:
        self._stopping = True
        if self._watching is not None:
            self._watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watching
            self._watching = None
        await self._stack.stop()
