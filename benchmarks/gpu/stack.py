"""The whole stack as real processes: one scheduler, one worker, several tokenizer processes on one port.

Started, stopped and watched through the launcher's own `Child`. Knows flags and process ids; no request.
"""

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.gpu.model import Model
from quire.launcher.child import Child
from quire.rpc.channel import open_channel
from quire.rpc.port import ReservedPort
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc

_HOST = "127.0.0.1"
_WORKER_TIMEOUT_S = 60.0
_POLL_S = 0.05


class Stack:
    """One model's processes."""

    def __init__(self, model: Model, num_tokenizers: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        directory = Path(self._folder.name)
        model.write(directory)
        flags = command_line(model.flags(directory))
        self._text_flags = ["--model", str(directory), "--served-model-name", model.name]
        scheduler, grpc, http = self._ports = [ReservedPort(_HOST, 0, "port") for _ in range(3)]
        self._scheduler_address = f"{_HOST}:{scheduler.number}"
        self.address = f"{_HOST}:{grpc.number}"
        """Of the front door's gRPC side."""
        self.http_address = f"http://{_HOST}:{http.number}"
        self._door_flags = ["--grpc-port", str(grpc.number), "--port", str(http.number), "--reuse-port"]
        scheduler_flags = ["--grpc-port", str(scheduler.number), *command_line(model.scheduler_flags)]
        self._scheduler = Child("scheduler", "quire_scheduler", scheduler_flags)
        worker = Child("worker", "quire_worker", [*flags, "--scheduler", self._scheduler_address])
        self._children = [self._scheduler, worker, *map(self._tokenizer, range(num_tokenizers))]

    async def start(self) -> None:
        """Starts every process and waits until the worker is registered."""
        await asyncio.gather(*(child.start() for child in self._children))
        await self._until_registered()

    async def restart_scheduler(self) -> None:
        """Ends the scheduler and starts another: nothing of its prefix cache is left, the worker keeps its weights."""
        await self._scheduler.stop()
        await self._scheduler.start()
        await self._until_registered()

    async def stop(self) -> None:
        """Front door first, scheduler last."""
        for child in reversed(self._children):
            await child.stop()
        for port in self._ports:
            port.close()
        self._folder.cleanup()

    async def stats(self) -> scheduler_pb2.GetStatsResponse:
        """The scheduler's counters."""
        async with open_channel(self._scheduler_address) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            return await stub.GetStats(scheduler_pb2.GetStatsRequest(), wait_for_ready=True)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time that each process has used."""
        return {child.name: _cpu_seconds(child.pid) for child in self._children}

    def _tokenizer(self, number: int) -> Child:
        flags = [*self._text_flags, "--scheduler", self._scheduler_address, *self._door_flags]
        return Child(f"tokenizer {number}", "quire_tokenizer", flags)

    async def _until_registered(self) -> None:
        deadline = time.monotonic() + _WORKER_TIMEOUT_S
        while not (await self.stats()).num_worker_groups:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no worker has registered within {_WORKER_TIMEOUT_S} s")
            await asyncio.sleep(_POLL_S)


def command_line(flags: dict[str, Any]) -> list[str]:
    """Flags by their configuration's names, as arguments."""
    arguments: list[str] = []
    for name, value in flags.items():
        arguments += [
            "--" + name.replace("_", "-"),
            ",".join(value) if isinstance(value, tuple) else str(value),
        ]
    return arguments


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system
