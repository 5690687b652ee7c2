"""Streaming clients in processes of their own: they ask, note when each message came, and parse afterwards.

While a run lasts, a client does nothing per message but read the clock and keep the bytes. Knows the front door's address
and no process behind it; `grpc_stream` and `sse_stream` know how to speak.
"""

import asyncio
import gc
import multiprocessing
from dataclasses import dataclass
from time import monotonic
from typing import Any

import uvloop

from benchmarks.gpu.grpc_stream import GrpcStreams
from benchmarks.gpu.sse_stream import SseStreams
from benchmarks.gpu.workload import Ask
from quire.bench.trace import Trace

_READY_TIMEOUT_S = 60.0
_RUN_TIMEOUT_S = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How requests arrive: a closed loop of `num_streams`, or each at its time after the start."""

    num_streams: int
    arrivals_s: list[float] | None = None


class ClientsFailed(Exception):
    """A client process ended without its traces."""


def run_clients(address: str, asks: list[Ask], load: Load, num_processes: int) -> list[Trace]:
    """Runs the requests from up to `num_processes` processes; blocks; traces in the order of the requests.

    An address that begins with http:// is asked for completions over HTTP, any other one over gRPC.
    """
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
    sender.send(client.traces())


class _Client:
    """One process's streams."""

    def __init__(
        self, address: str, asks: list[Ask], load: Load, shared: _Shared, number: int, num_processes: int
    ) -> None:
        num_own = -(-load.num_streams // num_processes)
        streams = SseStreams if address.startswith("http://") else GrpcStreams
        self._streams = streams(address, num_own)
        self._messages = [self._streams.encode(ask) for ask in asks]
        self._load = load
        self._shared = shared
        self._number = number
        self._num_processes = num_processes
        self._seen: dict[int, tuple[float, list[float], list[bytes]]] = {}
        """By request: when it was sent, and when each message came with what bytes."""

    async def run(self) -> None:
        """Connects, waits for the others, and asks."""
        await self._streams.open()
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
        await self._streams.close()

    def traces(self) -> dict[int, Trace]:
        """What was seen, by request."""
        return {index: self._streams.trace(*seen) for index, seen in self._seen.items()}

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
        sent = monotonic()
        self._seen[index] = (sent, *await self._streams.ask(index, self._messages[index]))
