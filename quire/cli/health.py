"""`quire health`: asks a process whether it serves, as a container's health check does."""

import argparse
import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.errors import Unavailable
from quire.rpc.channel import open_channel
from quire.rpc.status import error_from_rpc

_SERVING = health_pb2.HealthCheckResponse.SERVING


def run(argv: Sequence[str]) -> int:
    """Parses flags and asks. Raises the `QuireError` that says why a process does not serve."""
    arguments = _parser().parse_args(list(argv))
    asyncio.run(_check(arguments.address, arguments.service, arguments.timeout_s))
    return 0


async def _check(address: str, service: str, timeout_s: float) -> None:
    request = health_pb2.HealthCheckRequest(service=service)
    async with open_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # it gets its methods when it is made
        try:
            answer = await stub.Check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
    if answer.status != _SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise Unavailable(f"{service or 'the process'} at {address} answers {status}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quire health", description=__doc__)
    parser.add_argument("address", help="The process's gRPC address, host:port.")
    parser.add_argument("--service", default="", help="One of its services (default: the whole process).")
    parser.add_argument(
        "--timeout-s", type=float, default=3.0, help="Longest wait in seconds (default: %(default)s)."
    )
    return parser
