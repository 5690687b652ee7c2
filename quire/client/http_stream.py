"""A small HTTP/1.1 client for server-sent events, on asyncio streams: no dependency, and cheap enough to load a server with.

Connections are kept and used again. Knows nothing of what the bodies mean.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from quire.errors import ConfigError, QuireError, Unavailable
from quire.rpc.tls import ClientTls

_LIMIT_BYTES = 1 << 22
"""Longest line or head that is read."""
_MAX_IDLE = 4096


class HttpRefused(QuireError):
    """The server answered with an error status; the message is the server's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status


class _Answer(NamedTuple):
    status: int
    headers: dict[str, str]


class _Connection(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class HttpClient:
    """Talks to one `http://` or `https://` address, with or without a path such as `/v1`."""

    def __init__(self, base_url: str, *, api_key: str = "", tls: ClientTls | None = None) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"address {base_url!r} is no http:// or https:// address", field="address")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        tls = tls or ClientTls()
        self._ssl = tls.ssl_context() if parts.scheme == "https" else None
        self._server_name = tls.server_name if self._ssl and tls.server_name else None
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._head = f"host: {parts.netloc.rpartition('@')[2]}\r\naccept: */*\r\n"
        if api_key:
            self._head += f"authorization: Bearer {api_key}\r\n"
        self._idle: list[_Connection] = []

    async def get_json(self, path: str) -> Any:
        """The JSON document at `path`. Raises `HttpRefused` and `Unavailable`."""
        async with self._exchange("GET", path, b"") as (connection, answer):
            body = b"".join([part async for part in _parts(connection.reader, answer)])
        return _document(body)

    async def post_json(self, path: str, body: object) -> Any:
        """The JSON document that answers `body`. Raises `HttpRefused` and `Unavailable`."""
        async with self._exchange("POST", path, json.dumps(body).encode()) as (connection, answer):
            raw = b"".join([part async for part in _parts(connection.reader, answer)])
        return _document(raw)

    async def events(self, path: str, body: bytes) -> AsyncIterator[bytes]:
        """The data of each server-sent event that answers the JSON `body`, as it comes.

        A caller that stops early closes the connection, which the server takes for an abort.
        Raises `HttpRefused` and `Unavailable`.
        """
        rest = b""
        async with self._exchange("POST", path, body) as (connection, answer):
            async for part in _parts(connection.reader, answer):
                *events, rest = (rest + part.replace(b"\r\n", b"\n")).split(b"\n\n")
                for event in events:
                    data = b"\n".join(
                        line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")
                    )
                    if data and data != b"[DONE]":
                        yield data

    async def close(self) -> None:
        """Closes the connections that are kept."""
        while self._idle:
            self._idle.pop().writer.close()

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, path: str, body: bytes
    ) -> AsyncGenerator[tuple[_Connection, _Answer]]:
        try:
            connection, answer = await self._ask(method, path, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable(f"no answer from {self._host}:{self._port}: {error}") from error
        reusable = False
        try:
            if answer.status >= 400:
                raw = b"".join([part async for part in _parts(connection.reader, answer)])
                raise HttpRefused(answer.status, _error_message(raw))
            yield connection, answer
            reusable = answer.headers.get("connection", "").lower() != "close" and _is_framed(answer)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Unavailable(f"the answer from {self._host}:{self._port} broke off: {error}") from error
        finally:
            if reusable and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
            else:
                connection.writer.close()

    async def _ask(self, method: str, path: str, body: bytes) -> tuple[_Connection, _Answer]:
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}"
        if body:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        request = head.encode() + b"\r\n" + body
        while self._idle:
            connection = self._idle.pop()
            # A kept connection may have been closed by the server: then it says nothing, and another is tried.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                return connection, await _send(connection, request)
            connection.writer.close()
        connection = _Connection(
            *await asyncio.open_connection(
                self._host,
                self._port,
                ssl=self._ssl,
                server_hostname=self._server_name,
                limit=_LIMIT_BYTES,
            )
        )
        try:
            return connection, await _send(connection, request)
        except BaseException:
            connection.writer.close()
            raise


async def _send(connection: _Connection, request: bytes) -> _Answer:
    connection.writer.write(request)
    head = (await connection.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status_line, *lines = head.rstrip().split("\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    return _Answer(int(status_line.split(" ", 2)[1]), headers)


async def _parts(reader: asyncio.StreamReader, answer: _Answer) -> AsyncIterator[bytes]:
    """The body, part by part, to its end."""
    if answer.headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield (await reader.readexactly(size + 2))[:-2]
        while (await reader.readuntil(b"\r\n")) != b"\r\n":
            pass
    elif "content-length" in answer.headers:
        yield await reader.readexactly(int(answer.headers["content-length"]))
    else:
        while part := await reader.read(1 << 16):
            yield part


def _is_framed(answer: _Answer) -> bool:
    return "content-length" in answer.headers or "transfer-encoding" in answer.headers


def _document(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError as error:
        raise Unavailable(f"the server's answer is no JSON: {raw[:200]!r}") from error


def _error_message(raw: bytes) -> str:
    """OpenAI's error shape, vLLM's older one, or the text."""
    try:
        document = json.loads(raw)
        return str((document.get("error") or document).get("message") or document)
    except (ValueError, AttributeError):
        return raw.decode(errors="replace")[:500]
