"""A conversation as a client sent it, and the text that a model's chat template makes of it.

Knows the shapes of messages; no request and no tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from google.protobuf.json_format import MessageToDict

from quire.errors import ConfigError, InvalidRequest
from quire.v1 import tokenizer_pb2
from quire_tokenizer.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages, oldest first, and how to render them."""

    messages: Sequence[Mapping[str, Any]]
    add_generation_prompt: bool | None = None
    """None: unless the last message is continued."""
    continue_final_message: bool = False
    variables: Mapping[str, Any] | None = None
    """Further variables of the template, such as tools."""
    chat_template: str | None = None
    """Source of a template that is taken instead of the model's own."""

    @classmethod
    def from_proto(cls, chat: tokenizer_pb2.ChatPrompt) -> "Conversation":
        """The conversation of a message. Raises `InvalidRequest`."""
        try:
            variables = MessageToDict(chat.chat_template_kwargs)
        except ValueError as error:
            # JSON, which templates are given, has no NaN and no infinity.
            raise InvalidRequest(
                f"chat.chat_template_kwargs: every number must be finite: {error}",
                field="chat.chat_template_kwargs",
            ) from error
        if chat.tools_json:
            variables["tools"] = _tools(chat.tools_json)
        return cls(
            messages=[_message(message, number) for number, message in enumerate(chat.messages)],
            add_generation_prompt=chat.add_generation_prompt
            if chat.HasField("add_generation_prompt")
            else None,
            continue_final_message=chat.continue_final_message,
            variables=variables,
        )

    def render(self, models_own: ChatTemplate | None) -> str:
        """The conversation as the model sees it. Raises `InvalidRequest`."""
        template = self._template(models_own)
        generates = self.add_generation_prompt
        return template.render(
            self.messages,
            add_generation_prompt=not self.continue_final_message if generates is None else generates,
            continue_final_message=self.continue_final_message,
            variables=self.variables,
        )

    def _template(self, models_own: ChatTemplate | None) -> ChatTemplate:
        if self.chat_template is None:
            if models_own is None:
                raise InvalidRequest(
                    "chat: the model has no chat template; send text or token_ids", field="chat"
                )
            return models_own
        try:
            return (models_own or ChatTemplate("", {})).with_source(self.chat_template)
        except ConfigError as error:
            raise InvalidRequest(
                error.message.replace("--model", "chat_template"), field="chat_template"
            ) from error


def call_arguments(text: str, where: str, field: str) -> dict[str, Any]:
    """The arguments of a tool call, as templates want them. Raises `InvalidRequest` that begins with `where`."""
    arguments = _loads(text or "{}", where, field)
    if not isinstance(arguments, dict):
        raise InvalidRequest(f"{where}={text!r}: must be a JSON object", field=field)
    return cast("dict[str, Any]", arguments)


def _message(message: tokenizer_pb2.ChatMessage, number: int) -> dict[str, Any]:
    known: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name:
        known["name"] = message.name
    if message.tool_call_id:
        known["tool_call_id"] = message.tool_call_id
    if message.reasoning_content:
        known["reasoning"] = known["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        where = f"chat.messages[{number}].tool_calls"
        known["tool_calls"] = [
            _tool_call(call, f"{where}[{place}]") for place, call in enumerate(message.tool_calls)
        ]
    return known


def _tool_call(call: tokenizer_pb2.ToolCall, where: str) -> dict[str, Any]:
    if not call.name:
        raise InvalidRequest(f"{where}.name is empty: a call names its function", field="chat.messages")
    arguments = call_arguments(call.arguments, f"{where}.arguments", "chat.messages")
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _tools(text: str) -> list[Any]:
    tools = _loads(text, "chat.tools_json", "chat.tools_json")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in cast("list[Any]", tools)):
        raise InvalidRequest("chat.tools_json must be a JSON array of objects", field="chat.tools_json")
    return cast("list[Any]", tools)


def _loads(text: str, where: str, field: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is no JSON: {error}", field=field) from error
