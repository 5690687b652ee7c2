"""`quire serve`: starts and supervises the whole stack on this machine, each service in a process of its own."""

import argparse
import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from quire.config.api_key import load_api_keys
from quire.config.flag import CommandParser
from quire.launcher.option import add_stack_flags, parse_options, stack_tls
from quire.launcher.stack import Stack
from quire.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from quire.rpc.tls import ClientTls


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


async def _start_and_watch(stack: Stack, tls: "ClientTls | None", api_key: str, *, show_sample: bool) -> None:
    # What speaks to the processes is imported while they start: it takes 0.2 s, by which they would all start later.
    _, announcement = await asyncio.gather(
        stack.start(), asyncio.to_thread(import_module, "quire.cli.announcement")
    )
    watching = asyncio.create_task(stack.supervise())
    try:
        await announcement.announce(stack, tls, api_key, show_sample=show_sample)
        await watching
    finally:
        watching.cancel()


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(prog="quire serve", description=__doc__, positional="[MODEL]")
    add_stack_flags(parser)
    parser.add_argument("--sample", action="store_true", help="Stream one sample generation once ready.")
    return parser
