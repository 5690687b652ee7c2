"""Streaming gRPC clients in processes of their own: they ask, note when each message came, and parse afterwards.

While a run lasts, a client does nothing per message but read the clock and keep the bytes. Requests go round-robin over
several connections, because the kernel spreads connections, not calls, over the processes that share the port. Knows
the front door's address and no process behind it.
"""

import asyncio
import gc
import multiprocessing
from dataclasses import dataclass
from time import monotonic
from typing import Any

import grpc
import uvloop

from benchmarks.gpu.workload import Ask
from quire.bench.backend import grpc_trace
from quire.bench.trace import Trace
from quire.rpc.channel import open_channel
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2, tokenizer_pb2

_GENERATE = "/quire.v1.GenerationService/Generate"
_READY_POLL_S = 0.05
_READY_TIMEOUT_S = 60.0
_RUN_TIMEOUT_S = 400.0
_MAX_CHANNELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests arrive: a closed loop of `num_streams`, or each at its time after the start."""

    num_streams: int
    arrivals_s: list[float] | None = None


class ClientsFailed(Exception):
    """A client process ended without its traces."""


def run_clients(address: str, asks: list[Ask], load: Load, num_processes: int) -> list[Trace]:
    """Runs the requests from up to `num_processes` processes; blocks; traces in the order of the requests."""
    context = multiprocessing.get_context("spawn")
    num_processes = min(num_processes, load.num_streams, len(asks))
    shared = _Shared(
        barrier=context.Barrier(num_processes, timeout=_READY_TIMEOUT_S), next_index=context.Value("q", 0)
    )
    pipes = [context.Pipe(duplex=False) for _ in range(num_processes)]
    processes = [
        context.Process(
            target=_client_process,
            args=(sender, address, asks, load, shared, number, num_processes),
            daemon=True,
        )
        for number, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        traces: dict[int, Trace] = {}
        for receiver, _ in pipes:
            if not receiver.poll(_READY_TIMEOUT_S + _RUN_TIMEOUT_S):
                raise ClientsFailed(f"no traces from a client within {_RUN_TIMEOUT_S} s")
            traces.update(receiver.recv())
    except EOFError as error:
        raise ClientsFailed("a client process failed; its error was printed") from error
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [traces[index] for index in range(len(asks))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What the client processes share."""

    barrier: Any
    """All begin together."""
    next_index: Any
    """The next request of a closed loop, whoever is free first."""


def _client_process(
    sender: Any, address: str, asks: list[Ask], load: Load, shared: _Shared, number: int, num_processes: int
) -> None:
    client = _Client(address, asks, load, shared, number, num_processes)
    uvloop.run(client.run())
    sender.send({index: grpc_trace(*seen) for index, seen in client.seen.items()})


class _Client:
    """One process's streams."""

    def __init__(
        self, address: str, asks: list[Ask], load: Load, shared: _Shared, number: int, num_processes: int
    ) -> None:
        self._address = address
        self._messages = [_request(ask) for ask in asks]
        self._load = load
        self._shared = shared
        self._number = number
        self._num_processes = num_processes
        self._calls: list[Any] = []
        self.seen: dict[int, tuple[float, list[float], list[bytes]]] = {}
        """By request: when it was sent, and when each message came with what bytes."""

    async def run(self) -> None:
        """Connects, waits for the others, and asks."""
        num_own = -(-self._load.num_streams // self._num_processes)
        channels = [open_channel(self._address) for _ in range(min(_MAX_CHANNELS, num_own))]
        await asyncio.gather(*(_until_ready(channel) for channel in channels))
        self._calls = [channel.unary_stream(_GENERATE) for channel in channels]
        gc.collect()
        gc.disable()
        await asyncio.to_thread(self._shared.barrier.wait)
        if self._load.arrivals_s is None:
            share = len(range(self._number, self._load.num_streams, self._num_processes))
            await asyncio.gather(*(self._loop() for _ in range(share)))
        else:
            own = range(self._number, len(self._messages), self._num_processes)
            start = monotonic()
            await asyncio.gather(
                *(self._ask_at(index, start + self._load.arrivals_s[index]) for index in own)
            )
        await asyncio.gather(*(channel.close() for channel in channels))

    async def _loop(self) -> None:
        """One stream of a closed loop."""
        while (index := self._take()) < len(self._messages):
            await self._ask(index)

    def _take(self) -> int:
        with self._shared.next_index.get_lock():
            index = self._shared.next_index.value
            self._shared.next_index.value += 1
        return index

    async def _ask_at(self, index: int, time_s: float) -> None:
        await asyncio.sleep(max(0.0, time_s - monotonic()))
        await self._ask(index)

    async def _ask(self, index: int) -> None:
        times: list[float] = []
        messages: list[bytes] = []
        call = self._calls[index % len(self._calls)]
        sent = monotonic()
        async for message in call(self._messages[index]):
            times.append(monotonic())
            messages.append(message)
        self.seen[index] = (sent, times, messages)


async def _until_ready(channel: grpc.aio.Channel) -> None:
    """Until the process at the other end of this connection has a scheduler with a worker."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    async with asyncio.timeout(_READY_TIMEOUT_S):
        while True:
            answer = await stub.ListModels(generation_pb2.ListModelsRequest(), wait_for_ready=True)
            if any(model.ready for model in answer.models):
                return
            await asyncio.sleep(_READY_POLL_S)


def _request(ask: Ask) -> bytes:
    return generation_pb2.GenerateRequest(
        token_ids=tokenizer_pb2.TokenIds(ids=ask.prompt_token_ids),
        sampling_params=sampling_pb2.SamplingParams(
            max_tokens=ask.num_out, seed=ask.seed, ignore_eos=True, **ask.sampling
        ),
    ).SerializeToString()
