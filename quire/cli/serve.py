"""`quire serve`: starts and supervises the whole stack on this machine, each service in a process of its own."""

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import Sequence

import grpc

from quire.cli.generate import stream_to_terminal
from quire.config.api_key import load_api_keys
from quire.config.flag import CommandParser
from quire.launcher.option import add_stack_flags, parse_options, stack_tls
from quire.launcher.stack import Stack
from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.tls import ClientTls
from quire.sampling_params import SamplingParams
from quire.telemetry.logs import configure_logging
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

_READY_POLL_S = 0.05
_SAMPLE_PROMPT = "ROMEO:\n"


def run(argv: Sequence[str]) -> int:
    """Parses flags, serves until told to stop, and returns the exit status."""
    options = parse_options(_parser(), argv)
    configure_logging("launcher", logging.WARNING)
    return asyncio.run(_serve(options))


async def _serve(options: argparse.Namespace) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stack = Stack(options)
    tls = stack_tls(options)
    key = next(iter(load_api_keys(options.api_key, options.api_key_file)), "")
    serving = asyncio.create_task(_start_and_watch(stack, tls, key, show_sample=options.sample))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
    serving.cancel()
    await stack.stop()
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    return 0


async def _start_and_watch(stack: Stack, tls: ClientTls | None, api_key: str, *, show_sample: bool) -> None:
    await stack.start()
    watching = asyncio.create_task(stack.supervise())
    try:
        await _announce(stack, tls, api_key, show_sample=show_sample)
        await watching
    finally:
        watching.cancel()


async def _announce(stack: Stack, tls: ClientTls | None, api_key: str, *, show_sample: bool) -> None:
    """Waits until a model can be generated with, prints the ready line and, if asked, a sample."""
    async with open_channel(stack.address, tls=tls) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        while not (models := await _ready_models(stub, api_key)):
            await asyncio.sleep(_READY_POLL_S)
    print(
        f"Quire is ready: {', '.join(models)} on grpc {stack.address} {'with TLS ' if tls else ''}"
        + (f"and {stack.http_url} " if stack.http_url else "")
        + f"(scheduler {stack.scheduler_address}, worker {stack.worker_address})",
        flush=True,
    )
    if show_sample:
        print(f"\nA sample, streamed through the three processes:\n\n{_SAMPLE_PROMPT}", end="", flush=True)
        params = SamplingParams.from_proto(sampling_pb2.SamplingParams(max_tokens=120))
        await stream_to_terminal(stack.address, _SAMPLE_PROMPT, params, api_key=api_key, tls=tls)
        quire = sys.argv[0] if sys.argv[0].endswith("quire") else "quire"
        command = f'{quire} generate "JULIET:" --address {stack.address}'
        if tls is not None:
            command += f" --ssl-ca-certs {tls.ca_certs} --ssl-server-name {tls.server_name}"
        print(f"\nTry it from another terminal:  {command}", flush=True)
        if stack.http_url:
            print(f"or point any OpenAI client at  {stack.http_url}/v1", flush=True)


async def _ready_models(stub: generation_pb2_grpc.GenerationServiceStub, api_key: str) -> list[str]:
    try:
        answer = await stub.ListModels(generation_pb2.ListModelsRequest(), metadata=key_metadata(api_key))
    except grpc.aio.AioRpcError:
        return []
    return [model.id for model in answer.models if model.ready]


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="quire serve", description=__doc__, positional="[MODEL]")
    add_stack_flags(parser)
    parser.add_argument("--sample", action="store_true", help="Stream one sample generation once ready.")
    return parser
