"""The body of /v1/chat/completions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import Field

from quire.errors import InvalidRequest
from quire.structured_outputs import Reasoning
from quire_tokenizer.conversation import Conversation
from quire_tokenizer.engine import Call
from quire_tokenizer.openai.body import Body, Text
from quire_tokenizer.openai.constraint import constraint_of
from quire_tokenizer.openai.message import Message
from quire_tokenizer.openai.tool import Choice, Tool, ToolUse
from quire_tokenizer.reasoning_parser import ReasoningParser


class ChatCompletionRequest(Body):
    """A conversation to be continued."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    echo: bool = False
    """Puts the message that is continued before the output."""
    chat_template: Text | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None

    @property
    def num_top_logprobs(self) -> int:
        """Alternatives shown per token."""
        return self.top_logprobs or 0

    @property
    def continued_text(self) -> str:
        """What an echo shows: the content of the message that is continued."""
        if not (self.echo and self.continue_final_message):
            return ""
        return self.messages[-1].text

    @property
    def allows_parallel_calls(self) -> bool:
        """Whether more than one tool may be called at once."""
        return self.parallel_tool_calls is not False

    def call(
        self,
        tools: ToolUse,
        *,
        trusts_template: bool,
        sees_special_tokens: bool,
        new_reasoning_parser: Callable[..., ReasoningParser] | None = None,
    ) -> Call:
        """The request. `sees_special_tokens` leaves special tokens in the text for the parsers. Raises `InvalidRequest`.

        What the model thinks first, as the parser reads it, is free of constraints.
        """
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest(
                f"top_logprobs={self.top_logprobs}: needs logprobs=true", field="top_logprobs"
            )
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        forced: dict[str, Any] = {}
        if tools.constraint is not None:
            if constraint_of(self) is not None:
                raise InvalidRequest("tool_choice: excludes other structured output", field="tool_choice")
            forced["structured_outputs"] = tools.constraint
        if sees_special_tokens and self.skip_special_tokens is None:
            forced["skip_special_tokens"] = False
        request = self.generate_request(
            n=self.n, max_tokens=limit, logprobs=self.num_top_logprobs if self.logprobs else None, **forced
        )
        conversation = self.conversation(tools.tools, trusts_template=trusts_template)

        def reasoning_after(prompt: str) -> Reasoning | None:
            assert new_reasoning_parser is not None, "asked for where there is a parser"
            return new_reasoning_parser(prompt=prompt).reasoning_before

        return Call(
            request=request,
            conversation=conversation,
            reasoning_after=None if new_reasoning_parser is None else reasoning_after,
        )

    def conversation(self, tools: Sequence[Mapping[str, Any]], *, trusts_template: bool) -> Conversation:
        """The messages and how to render them. Raises `InvalidRequest`."""
        if self.chat_template is not None and not trusts_template:
            raise InvalidRequest(
                "chat_template: the server takes no template from requests; it was started without "
                "--trust-request-chat-template",
                field="chat_template",
            )
        variables = dict(self.chat_template_kwargs or {})
        if tools:
            variables["tools"] = tools
        if self.documents is not None:
            variables.setdefault("documents", self.documents)
        return Conversation(
            messages=[
                message.for_template(f"messages[{number}]") for number, message in enumerate(self.messages)
            ],
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            variables=variables,
            chat_template=self.chat_template,
        )
