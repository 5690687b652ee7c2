"""The HTTP server, in the event loop of the process. Knows sockets and TLS, no route."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn

from quire.config import TokenizerConfig
from quire.errors import ConfigError
from quire.rpc.port import describe_holder
from quire_tokenizer.openai.bounded_protocol import BoundedProtocol

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Longer than the minute for which proxies keep an idle connection."""

_POLL_S = 0.01


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


def _uvicorn_config(app: Any, config: TokenizerConfig) -> uvicorn.Config:
    limits = {"max_header_bytes": config.max_header_bytes, "read_timeout_ms": config.http_read_timeout_ms}
    protocol = type("LimitedProtocol", (BoundedProtocol,), limits)
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
