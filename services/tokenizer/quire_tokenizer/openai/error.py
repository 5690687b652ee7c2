"""Failures in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. Statuses are those of `quire.errors`."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import orjson
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from quire.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuireError,
    RequestExists,
    RequestTooLarge,
    Unauthenticated,
    Unavailable,
)

_INVALID = "invalid_request_error"
_SHAPES: dict[type[QuireError], tuple[str, str | None]] = {
    InvalidRequest: (_INVALID, None),
    Unauthenticated: (_INVALID, "invalid_api_key"),
    ModelNotFound: (_INVALID, "model_not_found"),
    RequestExists: (_INVALID, "request_exists"),
    RequestTooLarge: (_INVALID, "request_too_large"),
    Overloaded: ("rate_limit_error", "rate_limit_exceeded"),
    Unavailable: ("server_error", "unavailable"),
    DeadlineExceeded: ("server_error", "deadline_exceeded"),
}
"""Type and code; anything else is a server error without a code."""

_FIELDS = {"text": "prompt", "token_ids": "prompt", "chat": "messages"}
"""What bodies call the fields of a `GenerateRequest`."""

_LONGEST_VALUE_LEN = 80


def error_body(error: QuireError) -> bytes:
    """The JSON document that says what went wrong."""
    kind, code = _SHAPES.get(type(error), ("server_error", None))
    field = _FIELDS.get(error.field, error.field)
    message = error.message
    if field != error.field and message.startswith(error.field):
        message = field + message.removeprefix(error.field)
    return _document(message, kind, field or None, code)


def error_response(error: QuireError) -> Response:
    """The whole answer, with a retry delay where there is one."""
    headers: dict[str, str] = {}
    if error.retry_after_ms:
        headers["retry-after"] = str(ceil(error.retry_after_ms / 1000))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(error_body(error), error.http_status, headers, "application/json")


async def answer_quire_error(_request: Request, error: Exception) -> Response:
    """Handler of the application for errors of Quire."""
    assert isinstance(error, QuireError)
    return error_response(error)


async def answer_http_error(_request: Request, error: Exception) -> Response:
    """Handler of the application for paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    kind = _INVALID if error.status_code < 500 else "server_error"
    body = _document(str(error.detail), kind, None, None)
    return Response(body, error.status_code, _headers(error.headers), "application/json")


async def answer_nobody(_request: Request, _error: Exception) -> Response:
    """Handler of the application for a client that went away, or was cut off, in the midst of its body: it sees none."""
    return Response(status_code=408)


async def answer_unforeseen(_request: Request, _error: Exception) -> Response:
    """Handler of the application for faults of our own; what they are is in the log."""
    return Response(_document("internal error", "server_error", None, None), 500, None, "application/json")


def invalid_body(error: ValidationError) -> InvalidRequest:
    """The error of a body that does not have the shape it must have; names the first field at fault."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    same = [detail for detail in details if str(detail["loc"][:1]) == str(first["loc"][:1])]
    rules = list(dict.fromkeys(_rule(detail) for detail in same))
    message = " or ".join(rules)
    if not name:
        return InvalidRequest(f"the body is no JSON document of the right shape: {message}")
    where = ".".join(map(str, first["loc"])) if len(same) == 1 else name
    return InvalidRequest(f"{where}={_shown(first['input'])}: {message}", field=name)


def _rule(detail: Mapping[str, Any]) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE_LEN else text[:_LONGEST_VALUE_LEN] + "…"


def _document(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    error = {"message": message, "type": kind, "param": param, "code": code}
    return orjson.dumps({"error": error}, default=str)


def _headers(headers: Mapping[str, str] | None) -> dict[str, str]:
    return dict(headers or {})
