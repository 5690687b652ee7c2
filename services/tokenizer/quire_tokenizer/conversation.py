"""A conversation as a client sent it, and the text that a model's chat template makes of it.

Knows the shapes of messages; no request and no tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
        """The conversation of a message."""
        return cls(
            messages=[{"role": message.role, "content": message.content} for message in chat.messages],
            add_generation_prompt=chat.add_generation_prompt
            if chat.HasField("add_generation_prompt")
            else None,
            continue_final_message=chat.continue_final_message,
            variables=MessageToDict(chat.chat_template_kwargs)
            if chat.HasField("chat_template_kwargs")
            else None,
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
