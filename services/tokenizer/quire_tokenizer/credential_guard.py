"""Keys in front of every gRPC method but health checks. Knows no servicer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc

from quire.errors import Unauthenticated
from quire.rpc.status import abort_with
from quire_tokenizer.credential import Credentials

_OPEN_PREFIX = "/grpc.health.v1.Health/"

_FIRST_MESSAGE_S = 1.0
"""How long a call without a valid key may take to send what it asks."""


class CredentialGuard(grpc.aio.ServerInterceptor):
    """Ends a call without a valid key with UNAUTHENTICATED."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The method's own handler, or one that refuses."""
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        if not method.startswith(_OPEN_PREFIX):
            metadata = handler_call_details.invocation_metadata  # pyright: ignore[reportAttributeAccessIssue]
            try:
                tenant_of(self._credentials, metadata)
            except Unauthenticated as error:
                return _refusal(error)
        return await continuation(handler_call_details)


def tenant_of(credentials: Credentials, metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The tenant that a call's metadata speaks for. Raises `Unauthenticated`."""
    values = [value for key, value in metadata or () if key == "authorization" and isinstance(value, str)]
    return credentials.authenticate(values[0] if len(values) == 1 else None)


def _refusal(error: Unauthenticated) -> grpc.RpcMethodHandler:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
        # A message that is on its way is taken off the wire first: a client whose sending is cut short may report that
        # instead of the refusal.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_MESSAGE_S):
                async for _ in requests:
                    break
        await abort_with(context, error)

    # Takes whatever the client sends, one message or many, as bytes.
    return grpc.stream_unary_rpc_method_handler(refuse)
