"""`quire health`: asks a process whether it serves, as a container's health check does."""

import argparse
import asyncio
from collections.abc import Sequence

from quire.cli.server_flag import add_tls_flags, tls_of
from quire.rpc.channel import open_channel
from quire.rpc.health import check_health
from quire.rpc.tls import ClientTls


def run(argv: Sequence[str]) -> int:
    """Parses flags and asks. Raises the `QuireError` that says why a process does not serve."""
    arguments = _parser().parse_args(list(argv))
    asyncio.run(_check(arguments.address, arguments.service, arguments.timeout_s, tls_of(arguments)))
    return 0


async def _check(address: str, service: str, timeout_s: float, tls: ClientTls | None) -> None:
    async with open_channel(address, tls=tls) as channel:
        await check_health(channel, address, service=service, timeout_s=timeout_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quire health", description=__doc__)
    parser.add_argument("address", help="The process's gRPC address, host:port.")
    parser.add_argument("--service", default="", help="One of its services (default: the whole process).")
    parser.add_argument(
        "--timeout-s", type=float, default=3.0, help="Longest wait in seconds (default: %(default)s)."
    )
    add_tls_flags(parser)
    return parser
