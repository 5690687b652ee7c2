"""Tokens per second through /v1/completions as server-sent events, beside the same streams over gRPC.

    python benchmarks/sse_rate.py [--num-streams 256] [--rate 8000] [--rounds 3]

Worker, scheduler, tokenizer and client are processes of their own, those of `stream_rate.py`; its paces are kept. Each
round runs both faces, one after the other, with a worker that begins so many steps a second, and with one that answers
at once, in which case what a stream has not sent yet is merged. A pace of fewer than 20 steps a second looks to the
scheduler like a worker that has lost them, so many streams want --rate 0. Events without text are not sent: what looks
merged under a pace is text held back until its character is whole. The client of the events does nothing but count
them, so that on few cores it takes as little as it can from the server. CPU is that of whole processes, in
microseconds per token: with the tokenizer process busy all the time, the ratio of its figures is that of the rates.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import cast

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.stream_rate import (
    PROMPT_LEN,
    TOKENS_PER_STREAM,
    Load,
    Process,
    front_door,
    load_of,
    own_cpu_s,
    worker_arguments,
)

_EVENT = b"data: {"
_DONE = b"data: [DONE]"


async def measure(options: argparse.Namespace) -> None:
    """Prints the table and the ratios of the medians."""
    loads: dict[tuple[str, str], list[Load]] = {}
    print(f"{'face':>6} {'worker':>15} {'tokens/s':>10} {'messages/s':>11} {'merged':>7}   CPU µs per token")
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            Process("scheduler", ["-m", "quire_scheduler", "--grpc-port", "0"])
        )
        doors = await front_door(options, scheduler, stack)
        for _ in range(options.rounds):
            paces = {f"{options.rate:,}/s": options.rate} if options.rate else {}
            for pace, rate in {**paces, "at once": 0}.items():
                for face in ("grpc", "http"):
                    load = await _round(options, face, rate / options.num_streams, scheduler, doors)
                    loads.setdefault((face, pace), []).append(load)
                    print(f"{face:>6} {pace:>15} {load.row()}", flush=True)
    for pace in dict.fromkeys(pace for _face, pace in loads):
        rates = {face: median(load.tokens_per_s for load in loads[face, pace]) for face in ("grpc", "http")}
        costs = {
            face: median(1e6 * load.cpu_s["tokenizer"] / load.num_tokens for load in loads[face, pace])
            for face in ("grpc", "http")
        }
        print(
            f"{options.num_streams} streams, {pace}: {rates['http']:,.0f} of {rates['grpc']:,.0f} tokens/s, "
            f"{rates['http'] / rates['grpc']:.2f}; tokenizer CPU per token {costs['http']:.1f} to {costs['grpc']:.1f} µs"
        )


async def _round(
    options: argparse.Namespace, face: str, steps_per_s: float, scheduler: Process, doors: Sequence[Process]
) -> Load:
    async with Process("worker", worker_arguments(options, scheduler, steps_per_s)) as worker:
        servers = [*doors, scheduler, worker]
        if face == "grpc":
            return await load_of(options, doors[0].facts["grpc"], servers)
        return await load_of(options, doors[0].facts["http"], servers, __file__)


class _Counter(asyncio.Protocol):
    """One stream on a connection of its own; counts events and keeps nothing but the last bytes."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._tail = b""
        self.num_events = 0
        self.done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the request."""
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        """Counts what came whole; a beginning that was cut in two is in the tail."""
        self.num_events += (self._tail[-len(_EVENT) + 1 :] + data).count(_EVENT)
        self._tail = (self._tail + data)[-600:]
        if _DONE in self._tail and not self.done.done():
            self.done.set_result(self._tail)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server should not have closed it."""
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("closed before the end"))


async def run_client(url: str, num_streams: int, tokens_per_stream: int) -> None:
    """Opens the streams at once and reports what came."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    await _until_ready(host, int(port))
    print("READY {}", flush=True)
    began, cpu_began_s = perf_counter(), own_cpu_s()
    streams = (_stream(host, int(port), number, tokens_per_stream) for number in range(num_streams))
    counts = await asyncio.gather(*streams)
    ended = perf_counter()
    num_tokens, num_events = (sum(column) for column in zip(*counts, strict=True))
    assert num_tokens == num_streams * tokens_per_stream, f"{num_tokens} tokens"
    report = {"began": began, "ended": ended, "cpu_s": own_cpu_s() - cpu_began_s, "num_tokens": num_tokens}
    merged = {"num_messages": num_events, "num_merged": max(0, num_tokens - num_events)}
    print(json.dumps({**report, **merged}), flush=True)


async def _stream(host: str, port: int, number: int, max_tokens: int) -> tuple[int, int]:
    body = json.dumps(
        {
            "prompt": [number % 900 + 1] * PROMPT_LEN,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    transport, counter = await asyncio.get_running_loop().create_connection(
        lambda: _Counter(head + body), host, port
    )
    end = await counter.done
    transport.close()
    usage = json.loads(end.rpartition(b'"usage":')[2].partition(b"}}")[0] + b"}}")
    return usage["completion_tokens"], counter.num_events - 1


async def _until_ready(host: str, port: int) -> None:
    while True:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET /ready HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
        line = await reader.readline()
        writer.close()
        if b" 200 " in line:
            return
        await asyncio.sleep(0.05)


def main() -> None:
    """Plays the role that the command line names; without one, measures."""
    match sys.argv[1:]:
        case ["client", url, _num_channels, num_streams, num_tokens]:
            uvloop.run(run_client(url, int(num_streams), int(num_tokens)))
        case _:
            uvloop.run(measure(_parse()))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-streams", type=int, default=256)
    parser.add_argument("--num-tokens", type=int, default=TOKENS_PER_STREAM, help="Tokens per stream.")
    parser.add_argument("--num-clients", type=int, default=1, help="Client processes (default: 1).")
    parser.add_argument(
        "--num-channels", type=int, default=8, help="Connections of each gRPC client (default: 8)."
    )
    parser.add_argument("--tokenizer-replicas", type=int, default=1)
    parser.add_argument(
        "--rate", type=int, default=8_000, help="Tokens per second of the paced worker; 0 leaves it out."
    )
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
