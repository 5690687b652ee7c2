"""Building and binding a gRPC server, with health and reflection. Knows no servicer of Quire."""

from collections.abc import Iterable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from quire.errors import ConfigError
from quire.rpc import KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS, MAX_MESSAGE_BYTES, MAX_PENDING_CALLS
from quire.rpc.message_guard import MessageGuard
from quire.rpc.port import describe_holder


def build_server(
    *,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    reuse_port: bool = False,
) -> grpc.aio.Server:
    """A server that is not bound yet.

    `max_message_bytes` bounds what a client may send; a larger message ends its call with RESOURCE_EXHAUSTED before
    it is read, and one that cannot be read with INVALID_ARGUMENT. With `reuse_port`, several processes may bind the
    same port and the kernel spreads connections.
    """
    options: list[tuple[str, int]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        # Without it grpc waits a minute for the answer to a probe, whatever the keepalive timeout says.
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients probe every 10 s; half of that is tolerated before a client counts as abusive.
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIME_MS // 2),
        ("grpc.so_reuseport", int(reuse_port)),
        # Calls that arrive together wait here for the event loop; grpc's own limit of 1000 cancels some of a thousand.
        # Whoever is one too many is told so by the service, with a delay after which to try again.
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
    ]
    return grpc.aio.server(interceptors=(*interceptors, MessageGuard()), options=options)


def bind(
    server: grpc.aio.Server, host: str, port: int, *, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Binds `server`, with TLS if there are `credentials`, and returns the real port (`port` 0 means any free one).

    Raises `ConfigError` naming host:port and, where it can be found out, the process that holds it.
    """
    bracketed = f"[{host}]" if ":" in host else host
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{bracketed}:{port}")
        else:
            bound = server.add_secure_port(f"{bracketed}:{port}", credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"cannot listen on {bracketed}:{port}: {describe_holder(port)}", field="port"
        ) from error
    if bound == 0:
        raise ConfigError(f"cannot listen on {bracketed}:{port}: {describe_holder(port)}", field="port")
    return bound


class HealthReporter:
    """Sets what `grpc.health.v1` answers. An answer of SERVING must mean that work makes progress."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    async def set(self, service_name: str, serving: bool) -> None:
        """Reports `service_name`, or the whole process under the name "", as serving or not."""
        serving_status = health_pb2.HealthCheckResponse.ServingStatus
        status = serving_status.SERVING if serving else serving_status.NOT_SERVING
        await self._servicer.set(service_name, status)


def add_health_and_reflection(server: grpc.aio.Server, service_names: Iterable[str]) -> HealthReporter:
    """Adds `grpc.health.v1` and reflection for the fully qualified `service_names`; health starts as unknown."""
    servicer = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue] — set at import time
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return HealthReporter(servicer)
