"""The HTTP server, in the event loop of the process. Knows sockets and TLS, no route."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from quire.config import TokenizerConfig
from quire.errors import ConfigError
from quire.rpc.port import describe_holder

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Longer than the minute for which proxies keep an idle connection."""

_POLL_S = 0.01
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b"
)
_TOO_LARGE_BODY = (
    b'{"error":{"message":"the head of the request is larger than max_header_bytes=%d",'
    b'"type":"invalid_request_error","param":null,"code":"request_too_large"}}'
)


class HttpServer:
    """Serves an application on one socket."""

    def __init__(self, app: Any, config: TokenizerConfig) -> None:
        """Binds. Raises `ConfigError` naming the port's holder or what is wrong with the certificate."""
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        self._socket = _bind(config.host, config.port, reuse_port=config.reuse_port)
        self._server = _Server(_uvicorn_config(app, config))
        self._task: asyncio.Task[None] | None = None
        scheme = "https" if config.ssl_certfile else "http"
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.url = f"{scheme}://{host}:{self._socket.getsockname()[1]}"
        """Where it is reached."""

    async def start(self) -> None:
        """Returns when connections are accepted."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
            await asyncio.sleep(_POLL_S)

    async def stop(self) -> None:
        """Closes the socket and ends what still runs."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to the process, which stops its servers in order."""
        yield


class _BoundedProtocol(HttpToolsProtocol):
    """Refuses a request whose head is longer than it may be; httptools itself would read on for ever."""

    max_header_bytes = 0
    _num_head_bytes = 0
    _reads_head = False
    _refused = False

    def data_received(self, data: bytes) -> None:
        """Counts what comes while a head is incomplete, but for the read in which it began."""
        read_head_before = self._reads_head
        super().data_received(data)
        if self._reads_head and read_head_before:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self.max_header_bytes:
                self._refuse()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._reads_head = True
        self._num_head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete; its exact length decides."""
        self._reads_head = False
        if (
            len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            > self.max_header_bytes
        ):
            self._refuse()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        if not self._refused:
            super().on_message_complete()

    def _refuse(self) -> None:
        if not self._refused:
            self._refused = True
            body = _TOO_LARGE_BODY % self.max_header_bytes
            self.transport.write(_TOO_LARGE % (len(body), body))
            self.transport.close()


def _uvicorn_config(app: Any, config: TokenizerConfig) -> uvicorn.Config:
    protocol = type("BoundedProtocol", (_BoundedProtocol,), {"max_header_bytes": config.max_header_bytes})
    settings = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        ssl_certfile=config.ssl_certfile,
        ssl_keyfile=config.ssl_keyfile,
        backlog=_BACKLOG,
    )
    try:
        settings.load()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"--ssl-certfile={config.ssl_certfile}: it cannot be used: {error}", field="ssl_certfile"
        ) from error
    return settings


def _bind(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"--port={port}: cannot listen on {host}:{port}: {describe_holder(port)}", field="port"
        ) from error
    listener.setblocking(False)
    return listener
