"""The application: routes, and what stands around them. Knows no socket.

Bodies are read and checked by the models themselves rather than through FastAPI's dependencies, which would cost more
than the rest of a short request; their schemas are put into the OpenAPI document here.
"""

import importlib
import inspect
from typing import Any, cast

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from quire.config import TokenizerConfig, vertex
from quire.errors import ConfigError, QuireError
from quire.release import __version__
from quire_tokenizer.credential import Credentials
from quire_tokenizer.openai.chat_request import ChatCompletionRequest
from quire_tokenizer.openai.completion import CompletionRequest
from quire_tokenizer.openai.desk import Desk
from quire_tokenizer.openai.error import (
    answer_http_error,
    answer_nobody,
    answer_quire_error,
    answer_unforeseen,
)
from quire_tokenizer.openai.guard import KeyGuard
from quire_tokenizer.openai.invocation import add_invocation_routes
from quire_tokenizer.openai.limit import BodyLimit
from quire_tokenizer.openai.model_list import add_model_routes
from quire_tokenizer.openai.probe import OPEN_PATHS, add_probe_routes
from quire_tokenizer.openai.schema import body_of, publish_schemas
from quire_tokenizer.openai.tokenization import BODIES as TOKENIZATION_BODIES
from quire_tokenizer.openai.tokenization import add_tokenization_routes

_NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False}
"""FastAPI's own would see every request a second time; the engine traces them, whichever face they came through."""

_BODIES: tuple[type[BaseModel], ...] = (CompletionRequest, ChatCompletionRequest, *TOKENIZATION_BODIES)


def build_app(desk: Desk, credentials: Credentials) -> FastAPI:
    """The ASGI application. Raises `ConfigError` for a middleware that cannot be loaded."""
    config = desk.config
    app = FastAPI(title="Quire", version=__version__, root_path=config.root_path, telemetry=_NO_TELEMETRY)
    app.add_exception_handler(QuireError, answer_quire_error)
    app.add_exception_handler(HTTPException, answer_http_error)
    app.add_exception_handler(ClientDisconnect, answer_nobody)
    app.add_exception_handler(Exception, answer_unforeseen)
    _add_generation_routes(app, desk)
    add_model_routes(app, desk)
    add_tokenization_routes(app, desk)
    add_invocation_routes(app, desk)
    add_probe_routes(app, desk)
    publish_schemas(app, _BODIES)
    _add_middleware(app, config, credentials)
    return app


def _add_generation_routes(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/completions", openapi_extra=body_of(CompletionRequest))
    async def create_completion(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Continues a prompt, or each of a batch."""
        return desk.complete(request, await desk.read(request, CompletionRequest))

    @app.post("/v1/chat/completions", openapi_extra=body_of(ChatCompletionRequest))
    async def create_chat_completion(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Answers a conversation."""
        return desk.chat(request, await desk.read(request, ChatCompletionRequest))


def _add_middleware(app: FastAPI, config: TokenizerConfig, credentials: Credentials) -> None:
    """The last one added is the outermost."""
    app.add_middleware(BodyLimit, max_body_bytes=config.max_message_bytes)
    open_paths = {*OPEN_PATHS, vertex.health_route()}
    app.add_middleware(KeyGuard, credentials=credentials, open_paths=open_paths)
    if config.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allowed_origins,
            allow_credentials=config.allow_credentials,
            allow_methods=["*"],
            allow_headers=["*"],
        )
    for name in config.middleware:
        middleware = _load(name)
        if inspect.isclass(middleware):
            app.add_middleware(cast(Any, middleware))
        else:
            app.middleware("http")(middleware)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--middleware={name}: it cannot be loaded: {error}", field="middleware") from error
    if not (inspect.isclass(found) or inspect.iscoroutinefunction(found)):
        raise ConfigError(
            f"--middleware={name}: must be an ASGI middleware class or an async function of request and call_next",
            field="middleware",
        )
    return found
