"""How much of a request is read: bytes of its body, and how deep its JSON nests.

Both are checked before anything is parsed. Knows no route.
"""

import re
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire.errors import InvalidRequest, RequestTooLarge
from quire_tokenizer.openai.error import error_response

_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


class BodyLimit:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on; reading more than the limit raises `RequestTooLarge` in whoever reads."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _content_length(scope) > self._max_body_bytes:
            await error_response(self._error())(scope, receive, send)
            return
        num_bytes = 0

        async def bounded() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                raise self._error()
            return message

        await self._app(scope, bounded, send)

    def _error(self) -> RequestTooLarge:
        return RequestTooLarge(
            f"the body is larger than max_message_bytes={self._max_body_bytes}", field="body"
        )


def check_json_depth(body: bytes, max_depth: int) -> None:
    """Raises `InvalidRequest` for JSON that nests deeper.

    Takes the innermost level off in each pass, at the speed of the C library; what is no JSON is left to the parser.
    """
    if body.count(b"[") + body.count(b"{") <= max_depth:
        return
    brackets = _STRINGS.sub(b"", body).translate(_BRACKETS, _NO_BRACKET)
    for _ in range(max_depth):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets:
        raise InvalidRequest(f"the body nests deeper than max_json_depth={max_depth}", field="body")


def _content_length(scope: dict[str, Any] | Any) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
