"""One route for every kind of body, as hosting platforms have it: SageMaker's /invocations and what Vertex AI asks for.

Vertex AI also sends several bodies at once, as `instances`; they are answered together, as `predictions`.
"""

import asyncio
from typing import Any

import orjson
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Message

from quire.config import vertex
from quire.errors import InvalidRequest
from quire_tokenizer.openai.chat_request import ChatCompletionRequest
from quire_tokenizer.openai.completion import CompletionRequest
from quire_tokenizer.openai.desk import Desk, parse


def add_invocation_routes(app: FastAPI, desk: Desk) -> None:
    """Adds /invocations, and the route that Vertex AI names in the environment."""

    async def invoke(request: Request) -> Response:
        """Completes or chats, whichever the body asks for."""
        body = await desk.read_any(request)
        return _answer(desk, request, body)

    async def predict(request: Request) -> Response:
        """The same for one body, or for each of `instances`."""
        body = await desk.read_any(request)
        if "instances" not in body:
            return _answer(desk, request, body)
        return await _predictions(desk, request, body["instances"])

    app.post("/invocations")(invoke)
    if route := vertex.predict_route():
        app.post(route)(predict)


def _answer(desk: Desk, request: Request, body: dict[str, Any]) -> Response:
    raw = orjson.dumps(body)
    if "messages" in body:
        return desk.chat(request, parse(raw, ChatCompletionRequest))
    if "prompt" in body:
        return desk.complete(request, parse(raw, CompletionRequest))
    raise InvalidRequest("the body has neither messages nor prompt", field="prompt")


async def _predictions(desk: Desk, request: Request, instances: Any) -> Response:
    """Runs the instances side by side; one that fails fails all. Raises its `QuireError`."""
    limit = desk.config.max_num_prompts
    if not isinstance(instances, list) or not 1 <= len(instances) <= limit:
        raise InvalidRequest(f"instances: must be a list of 1 to {limit} bodies", field="instances")
    if not all(isinstance(each, dict) for each in instances):
        raise InvalidRequest(
            "instances: each must be a body as of /v1/completions or chat", field="instances"
        )
    answers = [_answer(desk, request, {**each, "stream": False}) for each in instances]
    documents = await asyncio.gather(*(_document(request, answer) for answer in answers))
    return Response(b'{"predictions":[' + b",".join(documents) + b"]}", media_type="application/json")


async def _document(request: Request, answer: Response) -> bytes:
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    await answer(request.scope, request.receive, keep)
    return b"".join(message.get("body", b"") for message in sent)
