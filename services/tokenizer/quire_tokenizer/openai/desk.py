"""What the routes share: the engine, the models' text sides, and what the server allows."""

import secrets
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
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
from quire_tokenizer.openai.constraint import constraint_of
from quire_tokenizer.openai.error import invalid_body
from quire_tokenizer.openai.guard import TENANT
from quire_tokenizer.openai.limit import check_json_depth
from quire_tokenizer.openai.tool import tool_use
from quire_tokenizer.reasoning_parser import ReasoningParser, reasoning_parser
from quire_tokenizer.tool_parser import ToolParser, tool_parser

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """Takes bodies in and gives answers out."""

    engine: GenerationEngine
    shelf: ModelShelf
    config: TokenizerConfig
    tool_parser: type[ToolParser] | None = None
    reasoning_parser: type[ReasoningParser] | None = None

    @classmethod
    def open(cls, engine: GenerationEngine, shelf: ModelShelf, config: TokenizerConfig) -> "Desk":
        """The desk that a configuration asks for. Raises `ConfigError` for a parser that there is not."""
        tools = tool_parser(config.tool_call_parser) if config.tool_call_parser else None
        return cls(
            engine=engine,
            shelf=shelf,
            config=config,
            tool_parser=tools if config.enable_auto_tool_choice else None,
            reasoning_parser=reasoning_parser(config.reasoning_parser) if config.reasoning_parser else None,
        )

    async def read(self, request: Request, model: type[_Model]) -> _Model:
        """The body of a request. Raises `InvalidRequest` naming the field, or `RequestTooLarge`."""
        body = await request.body()
        check_json_depth(body, self.config.max_json_depth)
        return parse(body, model)

    async def read_any(self, request: Request) -> dict[str, Any]:
        """The body of a request, whatever its fields. Raises `InvalidRequest`, or `RequestTooLarge`."""
        body = await request.body()
        check_json_depth(body, self.config.max_json_depth)
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the body is no JSON document: {error}", field="body") from error
        if not isinstance(document, dict):
            raise InvalidRequest("the body must be a JSON object", field="body")
        return document

    def max_model_len(self, name: str) -> int:
        """Longest context of a served model, in tokens; 0 while no scheduler is attached."""
        lengths = [card.max_model_len for card in self.engine.models() if not name or card.id == name]
        return max(lengths, default=0)

    def complete(self, http: Request, request: CompletionRequest) -> Response:
        """The answer to a completion request, which runs when it is sent."""
        calls = request.calls(self.config.max_num_prompts)
        answer_id = self._name(http, "cmpl", request, calls)
        return self._answer(http, calls, CompletionWriter(request, answer_id), streams=request.stream)

    def chat(self, http: Request, request: ChatCompletionRequest) -> Response:
        """The answer to a chat completion request, which runs when it is sent."""
        tools = tool_use(
            request.tools, request.tool_choice, self.tool_parser, parallel=request.allows_parallel_calls
        )
        reasons = self.reasoning_parser
        new_reasoning_parser = None
        if reasons is not None:
            new_reasoning_parser = partial(
                reasons,
                chat_template_kwargs=request.chat_template_kwargs,
                is_constrained=constraint_of(request) is not None or tools.constraint is not None,
            )
        call = request.call(
            tools,
            trusts_template=self.config.trust_request_chat_template,
            sees_special_tokens=tools.needs_special_tokens
            or (reasons is not None and reasons.needs_special_tokens),
            new_reasoning_parser=new_reasoning_parser,
        )
        answer_id = self._name(http, "chatcmpl", request, [call])
        writer = ChatCompletionWriter(request, answer_id, tools, new_reasoning_parser)
        return self._answer(http, [call], writer, streams=request.stream)

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
