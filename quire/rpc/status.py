"""Errors as gRPC statuses with `google.rpc` details, and back. Knows no service and no servicer."""

from collections.abc import Iterable
from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from quire.errors import QuireError, error_for_code

DOMAIN = "quire.v1"
"""`ErrorInfo.domain` of every error that Quire sends; its reason is the name of the error's class."""

_DETAILS_KEY = "grpc-status-details-bin"


def status_of(error: QuireError) -> status_pb2.Status:
    """`error` as a `google.rpc.Status`: BadRequest names the field, RetryInfo the delay, ErrorInfo the class."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=DOMAIN)]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_ms:
        seconds, millis = divmod(error.retry_after_ms, 1000)
        delay = duration_pb2.Duration(seconds=seconds, nanos=millis * 1_000_000)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return status_pb2.Status(
        code=error.grpc_code, message=error.message, details=[_packed(d) for d in details]
    )


async def abort_with(context: grpc.aio.ServicerContext, error: QuireError) -> NoReturn:
    """Ends the call of `context` with `error`. Raises what grpc raises to unwind the servicer; never returns."""
    status = rpc_status.to_status(status_of(error))
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort returned")


def error_from_rpc(exc: grpc.RpcError) -> QuireError:
    """The error that ended a call: the sender's own where it sent details, else the one of its status code."""
    if not isinstance(exc, grpc.aio.AioRpcError):
        return error_for_code(grpc.StatusCode.UNKNOWN.value[0], str(exc))
    code: int = exc.code().value[0]
    message = exc.details() or exc.code().name
    status = _status_in(exc.trailing_metadata())
    if status is None or status.code != code:
        return error_for_code(code, message)
    return error_for_code(code, message, _field_of(status.details), _retry_after_ms_of(status.details))


def _status_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> status_pb2.Status | None:
    for key, value in metadata or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None
    return None


def _field_of(details: Iterable[any_pb2.Any]) -> str:
    bad_request = error_details_pb2.BadRequest()
    for detail in details:
        if detail.Unpack(bad_request) and bad_request.field_violations:
            return bad_request.field_violations[0].field
    return ""


def _retry_after_ms_of(details: Iterable[any_pb2.Any]) -> int:
    retry_info = error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(retry_info):
            return retry_info.retry_delay.seconds * 1000 + retry_info.retry_delay.nanos // 1_000_000
    return 0


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
