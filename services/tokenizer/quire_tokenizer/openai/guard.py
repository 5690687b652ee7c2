"""Keys in front of every route but those that probes call. Knows no route beyond their paths."""

from collections.abc import Iterable

from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from quire.errors import Unauthenticated
from quire_tokenizer.credential import Credentials
from quire_tokenizer.openai.error import error_response

TENANT = "quire.tenant"
"""Where a request's scope names the tenant that its key speaks for."""


class KeyGuard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, credentials: Credentials, open_paths: Iterable[str]) -> None:
        self._app = app
        self._credentials = credentials
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401."""
        if scope["type"] == "http":
            try:
                scope[TENANT] = self._tenant(scope)
            except Unauthenticated as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _tenant(self, scope: Scope) -> str:
        if get_route_path(scope) in self._open_paths:
            return ""
        values = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._credentials.authenticate(values[0].decode("latin-1") if len(values) == 1 else None)
