"""`quire serve`: starts and supervises the whole stack on this machine, each service in a process of its own."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import grpc

from quire.cli.child import Child
from quire.cli.generate import stream_to_terminal
from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import add_flags
from quire.config.not_built import add_refused_flags, refuse
from quire.errors import ConfigError
from quire.rpc.channel import open_channel
from quire.rpc.port import check_port_is_free
from quire.sampling_params import SamplingParams
from quire.telemetry.logs import configure_logging
from quire.v1 import generation_pb2, generation_pb2_grpc

logger = logging.getLogger(__name__)

_WIRING = frozenset({"scheduler", "reuse_port", "data_port", "advertise_host", "group_name"})
_READY_POLL_S = 0.05
_SAMPLE_PROMPT = "ROMEO:\n"


def run(argv: Sequence[str]) -> int:
    """Parses flags, serves until told to stop, and returns the exit status."""
    options = _parse(argv)
    configure_logging("launcher", logging.WARNING)
    check_port_is_free(options.host, options.grpc_port, "--grpc-port")
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    children: list[Child] = []
    serving = asyncio.create_task(_start_and_watch(options, children))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    # The front door closes first, then the workers, and the scheduler last: nobody is left waiting for an answer.
    for child in reversed(children):
        await child.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    return 0


async def _start_and_watch(options: argparse.Namespace, children: list[Child]) -> None:
    scheduler = Child("scheduler", "quire_scheduler", _flags(options, SchedulerConfig))
    children.append(scheduler)
    await scheduler.start()
    address = scheduler.facts["grpc"]
    scheduler.pin("--grpc-port", address.rpartition(":")[2])
    worker = Child("worker", "quire_worker", [*_flags(options, WorkerConfig), "--scheduler", address])
    children.append(worker)
    first = _tokenizer(options, address, 0, options.grpc_port)
    children.append(first)
    await asyncio.gather(worker.start(), first.start())
    port = int(first.facts["grpc"].rpartition(":")[2])
    first.pin("--grpc-port", str(port))
    replicas = [_tokenizer(options, address, number, port) for number in range(1, options.tokenizer_replicas)]
    children += replicas
    await asyncio.gather(*(replica.start() for replica in replicas))
    watching = [asyncio.create_task(child.supervise()) for child in children]
    try:
        await _announce(options, f"{_client_host(options.host)}:{port}", scheduler, worker)
        await asyncio.gather(*watching)
    finally:
        for task in watching:
            task.cancel()


def _tokenizer(options: argparse.Namespace, scheduler: str, number: int, port: int) -> Child:
    shares_port = ["--reuse-port"] if options.tokenizer_replicas > 1 else []
    return Child(
        f"tokenizer {number}" if options.tokenizer_replicas > 1 else "tokenizer",
        "quire_tokenizer",
        [*_flags(options, TokenizerConfig), "--scheduler", scheduler, "--grpc-port", str(port), *shares_port],
    )


async def _announce(options: argparse.Namespace, address: str, scheduler: Child, worker: Child) -> None:
    """Waits until a model can be generated with, prints the ready line and, if asked, a sample."""
    async with open_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        while not (models := await _ready_models(stub)):
            await asyncio.sleep(_READY_POLL_S)
    print(
        f"Quire is ready: {', '.join(models)} on grpc {address} "
        f"(scheduler {scheduler.facts['grpc']}, worker {worker.facts['grpc']})",
        flush=True,
    )
    if options.sample:
        print(f"\nA sample, streamed through the three processes:\n\n{_SAMPLE_PROMPT}", end="", flush=True)
        await stream_to_terminal(address, _SAMPLE_PROMPT, SamplingParams(max_tokens=120))
        quire = sys.argv[0] if sys.argv[0].endswith("quire") else "quire"
        print(f'\nTry it from another terminal:  {quire} generate "JULIET:" --address {address}', flush=True)


async def _ready_models(stub: generation_pb2_grpc.GenerationServiceStub) -> list[str]:
    try:
        answer = await stub.ListModels(generation_pb2.ListModelsRequest())
    except grpc.aio.AioRpcError:
        return []
    return [model.id for model in answer.models if model.ready]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="quire serve", description=__doc__, allow_abbrev=False)
    parser.add_argument("model_tag", nargs="?", help="Model directory or hub id; the same as --model.")
    add_flags(parser, TokenizerConfig, skip=_WIRING)
    add_flags(parser, WorkerConfig, skip=_WIRING)
    add_flags(parser, SchedulerConfig, skip=_WIRING)
    parser.add_argument(
        "--tokenizer-replicas",
        type=int,
        default=1,
        help="Tokenizer processes that share the port (default: 1).",
    )
    parser.add_argument("--sample", action="store_true", help="Stream one sample generation once ready.")
    add_refused_flags(parser)
    options = parser.parse_args(list(argv))
    refuse(options)
    if options.model_tag is not None:
        options.model = options.model_tag
    if options.tokenizer_replicas < 1:
        raise ConfigError(f"--tokenizer-replicas={options.tokenizer_replicas}: must be at least 1")
    for config_type in (
        TokenizerConfig,
        WorkerConfig,
        SchedulerConfig,
    ):  # checks every value before anything starts
        config_type(
            **{
                each.name: getattr(options, each.name)
                for each in fields(config_type)
                if each.name not in _WIRING
            }
        )
    return options


def _flags(options: argparse.Namespace, config_type: type[Any]) -> list[str]:
    """The command line of a service: what differs from its defaults. Its addresses are wired by the launcher."""
    arguments = ["--host", options.host] if config_type is TokenizerConfig else []
    if config_type is SchedulerConfig:
        arguments += ["--grpc-port", "0"]
    for each in fields(config_type):
        if each.name in _WIRING or each.name in ("host", "grpc_port"):
            continue
        value = getattr(options, each.name)
        if value == each.default:
            continue
        if isinstance(value, bool):
            arguments.append(_flag(each.name) if value else _flag(f"no_{each.name}"))
        else:
            arguments += [_flag(each.name), ",".join(value) if isinstance(value, tuple) else str(value)]
    return arguments


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _client_host(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
