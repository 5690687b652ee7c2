"""Asking a process whether it serves. Knows `grpc.health.v1` and no service of Quire."""

from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quire.errors import Unavailable
from quire.rpc.status import error_from_rpc

_SERVING = health_pb2.HealthCheckResponse.SERVING


async def check_health(
    channel: grpc.aio.Channel,
    address: str,
    *,
    service: str = "",
    timeout_s: float = 3.0,
    metadata: Sequence[tuple[str, str]] = (),
) -> None:
    """Returns when `service`, or the whole process, at `address` serves. Raises the `QuireError` that says why not."""
    request = health_pb2.HealthCheckRequest(service=service)
    stub: Any = health_pb2_grpc.HealthStub(channel)  # it gets its methods when it is made
    try:
        answer = await stub.Check(request, timeout=timeout_s, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        raise error_from_rpc(error) from error
    if answer.status != _SERVING:
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise Unavailable(f"{service or 'the process'} at {address} answers {status}")
