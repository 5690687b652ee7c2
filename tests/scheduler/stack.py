"""A scheduler process with echo workers around it, for the tests of this folder."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from time import monotonic

from quire.rpc.channel import open_channel
from quire.v1 import sampling_pb2, scheduler_pb2, scheduler_pb2_grpc
from tests.doubles.echo_worker import EchoWorker
from tests.doubles.simulated_worker import expected_tokens

_POLL_S = 0.02


class Stack:
    """One scheduler process and what a test needs to talk to it."""

    def __init__(self, ready: dict[str, str], stub: scheduler_pb2_grpc.SchedulerServiceStub) -> None:
        self.grpc = ready["grpc"]
        self.data = ready["data"]
        self.stub = stub
        self._workers: list[asyncio.Task[None]] = []

    def start(self, worker: EchoWorker) -> "asyncio.Task[None]":
        """Runs a worker beside the test."""
        task = asyncio.create_task(worker.run())
        self._workers.append(task)
        return task

    async def stats_when(
        self, condition: Callable[[scheduler_pb2.GetStatsResponse], bool], limit_s: float = 10.0
    ) -> scheduler_pb2.GetStatsResponse:
        """Polls GetStats until `condition` holds. Raises `TimeoutError` with the last figures."""
        deadline = monotonic() + limit_s
        while not condition(stats := await self.stub.GetStats(scheduler_pb2.GetStatsRequest())):
            if monotonic() > deadline:
                raise TimeoutError(str(stats))
            await asyncio.sleep(_POLL_S)
        return stats

    async def generate(self, prompt: list[int], max_tokens: int, seed: int = 7) -> list[int]:
        """The tokens of one request."""
        request = request_of(prompt, max_tokens, seed)
        return [
            token
            async for response in self.stub.Generate(request)
            for output in response.outputs
            for token in output.token_ids
        ]

    async def close(self) -> None:
        """Stops the workers."""
        for task in self._workers:
            task.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)


def request_of(
    prompt: list[int], max_tokens: int, seed: int = 7
) -> scheduler_pb2.SchedulerServiceGenerateRequest:
    """One sequence that runs to max_tokens."""
    return scheduler_pb2.SchedulerServiceGenerateRequest(
        prompt_token_ids=prompt,
        sampling_params=sampling_pb2.SamplingParams(seed=seed, max_tokens=max_tokens),
    )


def truth(prompt: list[int], max_tokens: int, seed: int = 7) -> list[int]:
    """What `generate` must bring."""
    return expected_tokens(
        prompt, seed=seed, index=0, max_tokens=max_tokens, stops=frozenset(), vocab_size=1000
    )


@contextlib.asynccontextmanager
async def running_stack(*flags: str) -> AsyncIterator[Stack]:
    """A scheduler process that ends with the block; it must exit 0 on SIGTERM."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "quire_scheduler", "--grpc-port", "0", *flags, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        assert line.startswith("READY "), line
        ready = json.loads(line.removeprefix("READY "))
        async with open_channel(ready["grpc"]) as channel:
            stack = Stack(ready, scheduler_pb2_grpc.SchedulerServiceStub(channel))
            try:
                yield stack
            finally:
                await stack.close()
    finally:
        if process.returncode is None:
            process.terminate()
        assert await asyncio.wait_for(process.wait(), 20) == 0
