"""What the routes share: the engine, the models' text sides, and what the server allows."""

import secrets
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from quire.config import TokenizerConfig
from quire.errors import InvalidRequest
from quire_tokenizer.engine import Call, GenerationEngine
from quire_tokenizer.model_shelf import ModelShelf
from quire_tokenizer.openai.answer import Answer
from quire_tokenizer.openai.body import Body
from quire_tokenizer.openai.chat_completion import ChatCompletionWriter
from quire_tokenizer.openai.chat_request import ChatCompletionRequest
from quire_tokenizer.openai.completion import CompletionRequest, CompletionWriter
from quire_tokenizer.openai.error import invalid_body
from quire_tokenizer.openai.guard import TENANT
from quire_tokenizer.openai.limit import check_json_depth

_Model = TypeVar("_Model", bound="Body")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Takes bodies in and gives answers out."""

    engine: GenerationEngine
    shelf: ModelShelf
    config: TokenizerConfig

    async def read(self, request: Request, model: type[_Model]) -> _Model:
        """The body of a request. Raises `InvalidRequest` naming the field, or `RequestTooLarge`."""
        body = await request.body()
        check_json_depth(body, self.config.max_json_depth)
        return parse(body, model)

    def complete(self, http: Request, request: CompletionRequest) -> Response:
        """The answer to a completion request, which runs when it is sent."""
        calls = request.calls(self.config.max_num_prompts)
        answer_id = self._name(http, "cmpl", request, calls)
        return self._answer(http, calls, CompletionWriter(request, answer_id), streams=request.stream)

    def chat(self, http: Request, request: ChatCompletionRequest) -> Response:
        """The answer to a chat completion request, which runs when it is sent."""
        calls = [request.call(trusts_template=self.config.trust_request_chat_template)]
        answer_id = self._name(http, "chatcmpl", request, calls)
        return self._answer(http, calls, ChatCompletionWriter(request, answer_id), streams=request.stream)

    def _name(self, http: Request, kind: str, request: Body, calls: list[Call]) -> str:
        """Gives each call its tenant and request id; returns the id of the whole answer."""
        header = http.headers.get("x-request-id", "")
        name = request.request_id or (f"{header}-{secrets.token_hex(4)}" if header else secrets.token_hex(16))
        for number, call in enumerate(calls):
            call.request.request_id = f"{name}-{number}" if len(calls) > 1 else name
            call.request.tenant = http.scope.get(TENANT, "")
        return f"{kind}-{name}"

    def _answer(
        self,
        http: Request,
        calls: list[Call],
        writer: CompletionWriter | ChatCompletionWriter,
        *,
        streams: bool,
    ) -> Response:
        traceparent = http.headers.get("traceparent", "")
        return Answer(self.engine, calls, writer, streams=streams, traceparent=traceparent)


def parse(body: bytes, model: type[_Model]) -> _Model:
    """A document of that shape. Raises `InvalidRequest`."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from error
    except RecursionError as error:
        raise InvalidRequest("the body nests too deep", field="body") from error
