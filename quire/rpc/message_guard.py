"""Messages that cannot be read: the call ends with INVALID_ARGUMENT naming the field, where grpc itself says UNKNOWN.

The guard gives a servicer nothing but messages of its type. Knows wire form and descriptors, no service.
"""

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import empty_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from quire.errors import InvalidRequest, QuireError
from quire.rpc.status import abort_with

_MAX_EXPLAINED_BYTES = 256 * 1024
"""Taking a message apart field by field costs up to a microsecond a byte on the event loop."""

_MAX_DEPTH = 100
"""How deep protobuf itself lets messages nest."""

_LENGTH_DELIMITED = 2


class MessageGuard(grpc.aio.ServerInterceptor):
    """Stands in front of every asynchronous method of a server."""

    def __init__(self) -> None:
        self._guarded: dict[str, grpc.RpcMethodHandler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """The method's handler, guarded; made once per method."""
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        guarded = self._guarded.get(method)
        if guarded is None:
            handler = await continuation(handler_call_details)
            if handler is None:
                return None
            guarded = self._guarded[method] = _guard(handler)
        return guarded


def explain_malformed(raw: bytes, descriptor: Descriptor) -> InvalidRequest:
    """Why `raw` is no message of that type: names the first string that is not UTF-8, if that is the reason."""
    fault = _bad_string(raw, descriptor, "", 0) if len(raw) <= _MAX_EXPLAINED_BYTES else None
    if fault is None:
        return InvalidRequest(
            f"the message is no {descriptor.full_name}: its {len(raw)} bytes break the protobuf wire format, or a "
            "string in it is not valid UTF-8"
        )
    field, error = fault
    value = error.object[error.start]
    return InvalidRequest(
        f"{field} holds byte 0x{value:02x} at {error.start}: a string must be valid UTF-8", field=field
    )


def _guard(handler: Any) -> grpc.RpcMethodHandler:
    for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
        behavior = getattr(handler, kind)
        if behavior is None or handler.request_deserializer is None:
            continue
        takes_stream = kind.startswith("stream")
        if inspect.isasyncgenfunction(behavior):
            guarded = _guarded_generator(behavior, takes_stream)
        elif inspect.iscoroutinefunction(behavior):
            guarded = _guarded_coroutine(behavior, takes_stream)
        else:
            return handler
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(guarded, _tolerant(handler.request_deserializer), handler.response_serializer)
    return handler


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Gives the error instead of raising it: grpc offers no other way from here to the call's status."""
    message_class = getattr(deserialize, "__self__", None)

    def read(raw: bytes) -> Any:
        try:
            return deserialize(raw)
        except DecodeError as error:
            if message_class is None:
                return InvalidRequest(str(error))
            return explain_malformed(raw, message_class.DESCRIPTOR)

    return read


def _guarded_generator(behavior: Callable[..., Any], takes_stream: bool) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            async with aclosing(behavior(_readable(request, takes_stream), context)) as responses:
                async for response in responses:
                    yield response
        except QuireError as error:
            await abort_with(context, error)

    return call


def _guarded_coroutine(behavior: Callable[..., Any], takes_stream: bool) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await behavior(_readable(request, takes_stream), context)
        except QuireError as error:
            await abort_with(context, error)

    return call


def _readable(request: Any, is_stream: bool) -> Any:
    """The request as the servicer may have it. Raises `InvalidRequest`, now or when the message is reached."""
    if is_stream:
        return _readable_stream(request)
    if isinstance(request, InvalidRequest):
        raise request
    return request


async def _readable_stream(messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for message in messages:
        if isinstance(message, InvalidRequest):
            raise message
        yield message


def _bad_string(
    raw: bytes, descriptor: Descriptor, path: str, depth: int
) -> tuple[str, UnicodeDecodeError] | None:
    """The first string field below `path` that is not UTF-8, with what is wrong with it."""
    try:
        # To a message without fields every field is unknown: so the wire form is read without a schema.
        unknown_fields = UnknownFieldSet(empty_pb2.Empty.FromString(raw))
    except DecodeError:
        return None
    num_seen: Counter[int] = Counter()
    for each in unknown_fields:
        field: FieldDescriptor | None = descriptor.fields_by_number.get(each.field_number)
        if field is None or each.wire_type != _LENGTH_DELIMITED:
            continue
        name = f"{path}{field.name}"
        if field.is_repeated:
            name += f"[{num_seen[each.field_number]}]"
            num_seen[each.field_number] += 1
        if field.type == FieldDescriptor.TYPE_STRING:
            fault = _utf8_fault(each.data)
            if fault is not None:
                return name, fault
        elif field.message_type is not None and depth < _MAX_DEPTH:
            found = _bad_string(each.data, field.message_type, f"{name}.", depth + 1)
            if found is not None:
                return found
    return None


def _utf8_fault(data: bytes) -> UnicodeDecodeError | None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error
    return None
