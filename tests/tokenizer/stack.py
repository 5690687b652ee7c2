"""Real service processes for the tests of this folder, and clients that talk to them over gRPC."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from time import monotonic

import grpc

from quire.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    sampling_pb2,
    scheduler_pb2,
    scheduler_pb2_grpc,
)
from tests.doubles.echo_worker import EchoWorker

_POLL_S = 0.01
_READY_WITHIN_S = 60.0


class Service:
    """A running process and what it said when it was ready."""

    def __init__(self, process: "subprocess.Popen[str]", facts: dict[str, str]) -> None:
        self.facts = facts
        self._process = process
        self._killed = False

    @property
    def address(self) -> str:
        """Where its gRPC services are."""
        return self.facts["grpc"]

    @property
    def http_url(self) -> str:
        """Where its HTTP API is."""
        return self.facts["http"]

    def kill(self) -> None:
        """Ends it as the kernel would, with no chance to say goodbye."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """Stops it where it is: its connections stand, and it answers nothing."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undoes `pause`."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it with SIGTERM, after which it must exit 0."""
        if not self._killed:
            self._process.terminate()
            assert self._process.wait(60) == 0


@contextlib.contextmanager
def service(module: str, *flags: str) -> Iterator[Service]:
    """A service process that ends with the block."""
    process = subprocess.Popen([sys.executable, "-m", module, *flags], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("READY "), line
        running = Service(process, json.loads(line.removeprefix("READY ")))
        yield running
        running.stop()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def scheduler(*flags: str, port: int = 0) -> Iterator[Service]:
    """A scheduler process, by default on free ports."""
    with service("quire_scheduler", "--grpc-port", str(port), *flags) as running:
        yield running


@contextlib.contextmanager
def tokenizer(schedulers: str, *flags: str) -> Iterator[Service]:
    """A tokenizer process on a free port, attached to comma-separated `schedulers`."""
    with service(
        "quire_tokenizer", "--grpc-port", "0", "--port", "0", "--scheduler", schedulers, *flags
    ) as running:
        yield running


@dataclass
class Output:
    """What one stream brought."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    last: generation_pb2.GenerateResponse = field(default_factory=generation_pb2.GenerateResponse)

    def take(self, response: generation_pb2.GenerateResponse) -> None:
        """Adds a message of a request with one sequence."""
        for delta in response.outputs:
            self.text += delta.text
            self.pieces.append(delta.text)
            self.token_ids += delta.token_ids
        self.last = response


@contextlib.asynccontextmanager
async def echoing(*workers: EchoWorker) -> AsyncIterator[None]:
    """Workers that run beside the test."""
    tasks = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Client:
    """The stubs of one tokenizer process."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = generation_pb2_grpc.GenerationServiceStub(self.channel)

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.channel.close()

    async def generate(self, request: generation_pb2.GenerateRequest, **options: float) -> Output:
        """A request run to its end."""
        output = Output()
        async for response in self.stub.Generate(request, **options):
            output.take(response)
        return output

    async def until_ready(self, *models: str) -> None:
        """Waits until all `models` are served, or any if none is named."""
        await self._until(lambda ready: bool(ready) and ready.issuperset(models))

    async def until_not_ready(self) -> None:
        """Waits until no model is served."""
        await self._until(lambda ready: not ready)

    async def _until(self, condition: Callable[[set[str]], bool]) -> None:
        deadline = monotonic() + _READY_WITHIN_S
        while True:
            answer = await self.stub.ListModels(generation_pb2.ListModelsRequest(), wait_for_ready=True)
            ready = {card.id for card in answer.models if card.ready}
            if condition(ready):
                return
            assert monotonic() < deadline, f"served: {ready}"
            await asyncio.sleep(_POLL_S)


class Scheduler:
    """A client of a scheduler process."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self.stub = scheduler_pb2_grpc.SchedulerServiceStub(self._channel)

    async def __aenter__(self) -> "Scheduler":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._channel.close()

    async def stats(self) -> scheduler_pb2.GetStatsResponse:
        """Figures of this moment."""
        return await self.stub.GetStats(scheduler_pb2.GetStatsRequest())

    async def seconds_until(
        self, condition: Callable[[scheduler_pb2.GetStatsResponse], bool], limit_s: float = 20.0
    ) -> float:
        """How long GetStats took to meet `condition`. Raises `TimeoutError` with the last figures."""
        began = monotonic()
        while not condition(stats := await self.stats()):
            if monotonic() - began > limit_s:
                raise TimeoutError(str(stats))
            await asyncio.sleep(_POLL_S)
        return monotonic() - began


def request_of(prompt: str | list[int], **params: object) -> generation_pb2.GenerateRequest:
    """A request for one prompt; `params` are sampling parameters."""
    request = generation_pb2.GenerateRequest(sampling_params=sampling_pb2.SamplingParams(**params))
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request
