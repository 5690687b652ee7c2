"""Messages of a chat completion, as a client sends them and as templates know them.

Content parts are joined to one text; parts that are no text are refused, because the models served read none.
"""

import json
from typing import Any

from pydantic import BaseModel, ConfigDict

from quire.errors import InvalidRequest
from quire_tokenizer.openai.body import Text


class ContentPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="allow")

    type: Text
    text: Text | None = None


class Message(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="allow")

    role: Text
    content: Text | list[ContentPart | Text] | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    reasoning_content: Text | None = None

    def for_template(self, where: str) -> dict[str, Any]:
        """The message with its content as one text. Raises `InvalidRequest` that begins with `where`."""
        message: dict[str, Any] = {"role": self.role, "content": _joined(self.content, where)}
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if self.tool_calls:
            message["tool_calls"] = [
                _tool_call(call, f"{where}.tool_calls[{number}]")
                for number, call in enumerate(self.tool_calls)
            ]
        return message


def _joined(content: str | list[ContentPart | str] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts: list[str] = []
    for number, part in enumerate(content):
        if isinstance(part, ContentPart):
            if part.type not in ("text", "input_text", "output_text", "refusal"):
                raise InvalidRequest(
                    f"{where}.content[{number}].type={part.type!r}: only text is supported; the model reads no "
                    "images, audio or files",
                    field="messages",
                )
            if part.text is None:
                raise InvalidRequest(f"{where}.content[{number}].text is missing", field="messages")
            texts.append(part.text)
        else:
            texts.append(part)
    return "\n".join(texts)


def _tool_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """Templates write arguments themselves, so they get them as an object rather than as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where}.function.name is missing", field="messages")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments else {}
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidRequest(
                f"{where}.function.arguments is no JSON: {error}", field="messages"
            ) from error
    return {**call, "function": {**function, "arguments": arguments}}
