"""Messages per second from a worker that answers at once, through scheduler and tokenizer, to 64 gRPC streams.

    python benchmarks/stream_rate.py [--num-streams 64] [--tokenizer-replicas 1] [--num-clients 1]

Worker, scheduler, tokenizer and client are processes of their own. The front door merges what a stream has not sent
yet, so tokens that come faster than it can send them share messages. How many it sends one by one is therefore sought
with a worker that begins so many steps a second and answers each at once: the table raises its pace until tokens
arrive later than they were made, or more than 1 % of the messages carry more than one. The last row does not pace the
worker at all. A bare grpc.aio server that streams ready-made messages of the same size to the same client is the base
of the ratio. CPU is that of whole processes, in microseconds per token.
"""

import argparse
import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter

import grpc
import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from quire.rpc.channel import open_channel
from quire.rpc.server import bind, build_server
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2
from tests.doubles.echo_worker import MAX_MODEL_LEN, EchoWorker

PROMPT_LEN = 8
TOKENS_PER_STREAM = MAX_MODEL_LEN - PROMPT_LEN
_BLOCKS_PER_STREAM = MAX_MODEL_LEN // 16
_MOST_MERGED = 0.01
_LEAST_KEPT_UP = 0.9
"""Share of the worker's pace that must arrive; the rest is what entering and leaving requests cost."""

_FIRST_RATE = 8_000
_RATE_STEP = 2_000
_POLL_S = 0.05


@dataclass
class Load:
    """What one round of streams brought, over all clients."""

    num_tokens: int = 0
    num_messages: int = 0
    num_merged: int = 0
    """Messages with more than one token."""
    elapsed_s: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Over all streams."""
        return self.num_tokens / self.elapsed_s

    @property
    def messages_per_s(self) -> float:
        """Over all streams."""
        return self.num_messages / self.elapsed_s

    @property
    def merged(self) -> float:
        """Share of the messages that carry more than one token."""
        return self.num_merged / self.num_messages

    def row(self) -> str:
        """Tokens/s, messages/s, merged share and CPU per token."""
        cpu = "  ".join(
            f"{name} {1e6 * seconds / self.num_tokens:5.1f}" for name, seconds in self.cpu_s.items()
        )
        rates = f"{self.tokens_per_s:>10,.0f} {self.messages_per_s:>11,.0f}"
        return f"{rates} {self.merged:>7.2%}   {cpu}"


class Process:
    """A process of the stack, or another role of this file, that says READY and facts on one line."""

    def __init__(self, name: str, arguments: Sequence[str]) -> None:
        self.name = name
        self._arguments = arguments

    async def __aenter__(self) -> "Process":
        self._log = TemporaryFile()  # noqa: SIM115 — closed in __aexit__
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE, stderr=self._log
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        if not line.startswith("READY "):
            await self._process.wait()
            self._log.seek(0)
            raise RuntimeError(f"the {self.name} process did not start: {self._log.read().decode()}")
        self.facts: dict[str, str] = json.loads(line.removeprefix("READY "))
        return self

    async def __aexit__(self, *_error: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()
        self._log.close()

    def cpu_s(self) -> float:
        """Processor time used so far."""
        times = psutil.Process(self._process.pid).cpu_times()
        return times.user + times.system

    async def rest(self) -> bytes:
        """What it prints until it ends. Raises `RuntimeError` when it fails."""
        assert self._process.stdout is not None
        printed = await self._process.stdout.read()
        if await self._process.wait():
            self._log.seek(0)
            raise RuntimeError(f"the {self.name} process failed: {self._log.read().decode()}")
        return printed


async def measure(options: argparse.Namespace) -> None:
    """Prints the table."""
    print(f"{'worker':>18} {'tokens/s':>10} {'messages/s':>11} {'merged':>7}   CPU µs per token")
    async with Process("server", [__file__, "bare"]) as server:
        bare = await load_of(options, server.facts["grpc"], [server])
    print(f"{'bare grpc.aio':>18} {bare.row()}", flush=True)
    best = 0.0
    async with contextlib.AsyncExitStack() as stack:
        scheduler = await stack.enter_async_context(
            Process("scheduler", ["-m", "quire_scheduler", "--grpc-port", "0"])
        )
        doors = await front_door(options, scheduler, stack)
        rate = options.first_rate
        while True:
            load = await _with_worker(options, scheduler, doors, rate / options.num_streams)
            print(f"{f'{rate:,} tokens/s':>18} {load.row()}", flush=True)
            if load.merged <= _MOST_MERGED:
                best = max(best, load.messages_per_s)
            if load.merged > _MOST_MERGED or load.tokens_per_s < _LEAST_KEPT_UP * rate:
                break
            rate += options.rate_step
        load = await _with_worker(options, scheduler, doors, 0.0)
        print(f"{'at once':>18} {load.row()}")
    print(
        f"{options.num_streams} streams, one message per token: {best:,.0f} messages/s, "
        f"{best / bare.messages_per_s:.2f} of a bare grpc.aio server"
    )


async def front_door(
    options: argparse.Namespace, scheduler: Process, stack: contextlib.AsyncExitStack
) -> list[Process]:
    """Replicas that share a port, which they join once a worker is there."""
    flags = [
        "-m",
        "quire_tokenizer",
        "--scheduler",
        scheduler.facts["grpc"],
        "--served-model-name",
        "echo",
    ]
    doors: list[Process] = []
    async with Process("worker", worker_arguments(options, scheduler, 0.0)):
        for _ in range(options.tokenizer_replicas):
            ports = [doors[0].facts[face].rpartition(":")[2] if doors else "0" for face in ("grpc", "http")]
            door = Process("tokenizer", [*flags, "--reuse-port", "--grpc-port", ports[0], "--port", ports[1]])
            doors.append(await stack.enter_async_context(door))
    return doors


async def _with_worker(
    options: argparse.Namespace, scheduler: Process, doors: Sequence[Process], steps_per_s: float
) -> Load:
    """One round with a worker at this pace; 0 answers at once."""
    async with Process("worker", worker_arguments(options, scheduler, steps_per_s)) as worker:
        return await load_of(options, doors[0].facts["grpc"], [*doors, scheduler, worker])


def worker_arguments(options: argparse.Namespace, scheduler: Process, steps_per_s: float) -> list[str]:
    return [__file__, "worker", scheduler.facts["grpc"], str(options.num_streams), str(steps_per_s)]


async def load_of(
    options: argparse.Namespace, address: str, servers: Sequence[Process], program: str = __file__
) -> Load:
    """Runs the streams from client processes of `program`; their start-up is not part of the time."""
    counts = (options.num_channels, options.num_streams // options.num_clients, options.num_tokens)
    arguments = [program, "client", address, *map(str, counts)]
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Process("client", arguments)) for _ in range(options.num_clients)
        ]
        before = {process: process.cpu_s() for process in servers}
        reports = [json.loads(await client.rest()) for client in clients]
        load = Load(elapsed_s=max(report["ended"] for report in reports) - min(r["began"] for r in reports))
        for process in servers:
            used_s = process.cpu_s() - before[process]
            load.cpu_s[process.name] = load.cpu_s.get(process.name, 0.0) + used_s
    load.cpu_s["client"] = sum(report["cpu_s"] for report in reports)
    load.num_tokens = sum(report["num_tokens"] for report in reports)
    load.num_messages = sum(report["num_messages"] for report in reports)
    load.num_merged = sum(report["num_merged"] for report in reports)
    return load


async def run_client(address: str, num_channels: int, num_streams: int, tokens_per_stream: int) -> None:
    """Opens the streams at once and reports what came."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(open_channel(address)) for _ in range(num_channels)]
        await _served(channels)
        print("READY {}", flush=True)
        began, cpu_began_s = perf_counter(), own_cpu_s()
        streams = (
            _stream(channels[number % len(channels)], number, tokens_per_stream)
            for number in range(num_streams)
        )
        counts = await asyncio.gather(*streams)
        ended = perf_counter()
        cpu_s = own_cpu_s() - cpu_began_s
    num_tokens, num_messages, num_merged = (sum(column) for column in zip(*counts, strict=True))
    assert num_tokens == num_streams * tokens_per_stream, f"{num_tokens} tokens"
    report = {"began": began, "ended": ended, "cpu_s": cpu_s, "num_tokens": num_tokens}
    print(json.dumps({**report, "num_messages": num_messages, "num_merged": num_merged}), flush=True)


async def _served(channels: Sequence[grpc.aio.Channel]) -> None:
    """Returns when every connection leads to a process that can serve."""
    for channel in channels:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.ListModelsRequest()
        while not any(model.ready for model in (await stub.ListModels(request, wait_for_ready=True)).models):
            await asyncio.sleep(_POLL_S)


async def _stream(channel: grpc.aio.Channel, number: int, max_tokens: int) -> tuple[int, int, int]:
    num_tokens = num_messages = num_merged = 0
    request = generation_pb2.GenerateRequest(
        token_ids={"ids": [number % 900 + 1] * PROMPT_LEN},
        sampling_params=sampling_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0),
    )
    async for response in generation_pb2_grpc.GenerationServiceStub(channel).Generate(request):
        num_new = sum(len(output.token_ids) for output in response.outputs)
        num_messages += 1
        num_tokens += num_new
        num_merged += num_new > 1
    return num_tokens, num_messages, num_merged


async def run_worker(scheduler: str, num_streams: int, steps_per_s: float) -> None:
    """Registers and answers plans at a pace."""
    worker = EchoWorker(
        scheduler,
        num_blocks=num_streams * _BLOCKS_PER_STREAM,
        max_num_seqs=num_streams,
        steps_per_s=steps_per_s,
    )
    print("READY {}", flush=True)
    await worker.run()


class BareService(generation_pb2_grpc.GenerationServiceServicer):
    """Streams one ready-made message again and again."""

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """As many messages as tokens are asked for."""
        delta = generation_pb2.CompletionDelta(text=" text", token_ids=[500])
        response = generation_pb2.GenerateResponse(request_id="0" * 32, outputs=[delta])
        for _ in range(request.sampling_params.max_tokens):
            yield response

    async def ListModels(
        self, request: generation_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.ListModelsResponse:
        """One model that is ready."""
        return generation_pb2.ListModelsResponse(models=[generation_pb2.ModelCard(id="bare", ready=True)])


async def run_bare_server() -> None:
    """A grpc.aio server with nothing behind it."""
    server = build_server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(BareService(), server)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    print("READY", json.dumps({"grpc": f"127.0.0.1:{port}"}), flush=True)
    await server.wait_for_termination()


def main() -> None:
    """Plays the role that the command line names; without one, measures."""
    match sys.argv[1:]:
        case ["bare"]:
            role = run_bare_server()
        case ["worker", scheduler, num_streams, steps_per_s]:
            role = run_worker(scheduler, int(num_streams), float(steps_per_s))
        case ["client", address, num_channels, num_streams, num_tokens]:
            role = run_client(address, int(num_channels), int(num_streams), int(num_tokens))
        case _:
            role = measure(_parse())
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(role)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--num-streams", type=int, default=64)
    parser.add_argument("--num-tokens", type=int, default=TOKENS_PER_STREAM, help="Tokens per stream.")
    parser.add_argument("--num-clients", type=int, default=1, help="Client processes (default: 1).")
    parser.add_argument("--num-channels", type=int, default=8, help="Connections of each (default: 8).")
    parser.add_argument("--tokenizer-replicas", type=int, default=1)
    parser.add_argument("--first-rate", type=int, default=_FIRST_RATE, help="Tokens per second.")
    parser.add_argument("--rate-step", type=int, default=_RATE_STEP, help="Tokens per second.")
    options = parser.parse_args()
    if options.num_streams % options.num_clients:
        parser.error(f"--num-streams={options.num_streams} must be a multiple of --num-clients")
    return options


def own_cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
