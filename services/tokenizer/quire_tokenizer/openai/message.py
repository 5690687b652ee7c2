"""Messages of a chat completion, as a client sends them and as templates know them.

Content parts that are no text are refused, because the models served read none.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

from quire.errors import InvalidRequest
from quire_tokenizer.conversation import call_arguments
from quire_tokenizer.openai.body import Text


class ContentPart(BaseModel):
    """A piece of a message's content."""

    model_config = ConfigDict(extra="allow")

    type: Text
    text: Text | None = None
    refusal: Text | None = None
    """Text of a part of type `refusal`, with which an assistant declined."""

    @property
    def own_text(self) -> str | None:
        """Its text, under whichever name it comes."""
        return self.refusal if self.text is None and self.type == "refusal" else self.text


class Message(BaseModel):
    """One message."""

    model_config = ConfigDict(extra="allow")

    role: Text
    content: Text | list[ContentPart | Text] | None = None
    name: Text | None = None
    tool_call_id: Text | None = None
    tool_calls: list[dict[str, Any]] | None = None
    refusal: Text | None = None
    """What an assistant said instead of content."""
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    """The newer name of `reasoning_content`; templates know one or the other."""

    @property
    def text(self) -> str:
        """Its content as one text; what is no text is left out."""
        if isinstance(self.content, list):
            return "\n".join(part if isinstance(part, str) else part.own_text or "" for part in self.content)
        return self.content or self.refusal or ""

    def for_template(self, where: str) -> dict[str, Any]:
        """The message as templates know it. Raises `InvalidRequest` that begins with `where`."""
        message: dict[str, Any] = {
            "role": self.role,
            "content": _readable(self.content or self.refusal, where),
        }
        for name in ("name", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                message[name] = value
        if (reasoning := self.reasoning or self.reasoning_content) is not None:
            message["reasoning"] = message["reasoning_content"] = reasoning
        if self.tool_calls:
            message["tool_calls"] = [
                _tool_call(call, f"{where}.tool_calls[{number}]")
                for number, call in enumerate(self.tool_calls)
            ]
        return message


def _readable(content: str | list[ContentPart | str] | None, where: str) -> str | list[dict[str, str]]:
    """Text, or parts that are text."""
    if content is None or isinstance(content, str):
        return content or ""
    return [
        {"type": "text", "text": _text_of(part, f"{where}.content[{number}]")}
        for number, part in enumerate(content)
    ]


def _text_of(part: ContentPart | str, where: str) -> str:
    if isinstance(part, str):
        return part
    if part.type not in ("text", "input_text", "output_text", "refusal"):
        raise InvalidRequest(
            f"{where}.type={part.type!r}: only text is supported; the model reads no images, audio or files",
            field="messages",
        )
    if part.own_text is None:
        name = "refusal" if part.type == "refusal" else "text"
        raise InvalidRequest(f"{where}.{name} is missing", field="messages")
    return part.own_text


def _tool_call(call: dict[str, Any], where: str) -> dict[str, Any]:
    """Templates write arguments themselves, so they get them as an object rather than as JSON text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where}.function.name is missing", field="messages")
    arguments = function.get("arguments")
    if arguments is None or isinstance(arguments, str):
        arguments = call_arguments(arguments or "", f"{where}.function.arguments", "messages")
    return {**call, "function": {**function, "arguments": arguments}}
