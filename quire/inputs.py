"""Prompts in the forms that vLLM's users give them. Knows how a prompt is put into a request, and no client."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, cast

from quire.errors import InvalidRequest
from quire.v1 import generation_pb2, tokenizer_pb2


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str


class TokensPrompt(TypedDict):
    """A prompt as token ids."""

    prompt_token_ids: Sequence[int]


PromptType: TypeAlias = str | Sequence[int] | TextPrompt | TokensPrompt
"""One prompt: text or token ids, bare or in a dictionary."""

Message: TypeAlias = Mapping[str, Any]
"""One message of a conversation, as OpenAI's API has it: `role`, and `content` as text or as a list of text parts."""

_TEXT_FIELDS = ("role", "name", "reasoning_content", "tool_call_id")
_MESSAGE_FIELDS = (*_TEXT_FIELDS, "content", "tool_calls")


def prompts_of(prompts: PromptType | Sequence[PromptType]) -> list[PromptType]:
    """A list of prompts, also of one that was given bare."""
    if isinstance(prompts, str | Mapping) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast("PromptType", prompts)]
    return list(cast("Sequence[PromptType]", prompts))


def conversations_of(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[Sequence[Message]]:
    """A list of conversations, also of one that was given bare."""
    if messages and isinstance(messages[0], Mapping):
        return [cast("Sequence[Message]", messages)]
    return list(cast("Sequence[Sequence[Message]]", messages))


def set_prompt(request: generation_pb2.GenerateRequest, prompt: PromptType) -> str | None:
    """Puts `prompt` into `request`; returns its text, None if it is token ids. Raises `InvalidRequest`."""
    content = _content(prompt)
    if isinstance(content, str):
        _check_text(content, "prompt")
        request.text = content
        request.return_prompt_token_ids = True
        return content
    try:
        request.token_ids.ids.extend(content)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"prompt_token_ids: {error}", field="prompt_token_ids") from error
    request.token_ids.SetInParent()
    return None


def chat_prompt(
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    continue_final_message: bool,
    chat_template_kwargs: Mapping[str, Any] | None,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tokenizer_pb2.ChatPrompt:
    """The message of a conversation. Raises `InvalidRequest` naming what it cannot hold."""
    chat = tokenizer_pb2.ChatPrompt(
        messages=[_message(message, number) for number, message in enumerate(messages)],
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final_message,
        tools_json=json.dumps(tools, ensure_ascii=False) if tools else "",
    )
    if chat_template_kwargs:
        chat.chat_template_kwargs.update(dict(chat_template_kwargs))
    return chat


def _content(prompt: PromptType) -> str | Sequence[int]:
    if not isinstance(prompt, Mapping):
        return prompt
    given = cast("Mapping[str, Any]", prompt)
    unknown = [name for name in given if name not in ("prompt", "prompt_token_ids")]
    if unknown:
        raise InvalidRequest(
            f"{unknown[0]}: a prompt holds prompt or prompt_token_ids, and nothing else", field=unknown[0]
        )
    if "prompt_token_ids" in given:
        return given["prompt_token_ids"]
    if "prompt" in given:
        return given["prompt"]
    raise InvalidRequest("prompt is missing: give prompt or prompt_token_ids", field="prompt")


def _message(message: Message, number: int) -> tokenizer_pb2.ChatMessage:
    place = f"messages[{number}]"
    unknown = [name for name in message if name not in _MESSAGE_FIELDS]
    if unknown:
        known = ", ".join(_MESSAGE_FIELDS)
        raise InvalidRequest(f"{place}.{unknown[0]}: a message holds {known}", field=f"{place}.{unknown[0]}")
    texts = {name: message[name] for name in _TEXT_FIELDS if message.get(name) is not None}
    for name, value in {"role": None, **texts}.items():
        if not isinstance(value, str):
            raise InvalidRequest(f"{place}.{name}={value!r}: must be text", field=f"{place}.{name}")
        _check_text(value, f"{place}.{name}")
    calls = message.get("tool_calls") or ()
    content = message.get("content")
    return tokenizer_pb2.ChatMessage(
        **texts,
        content="" if content is None and calls else _text_of(content, number),
        tool_calls=[_tool_call(call, f"{place}.tool_calls[{i}]") for i, call in enumerate(calls)],
    )


def _tool_call(call: Mapping[str, Any], place: str) -> tokenizer_pb2.ToolCall:
    try:
        function = call["function"]
        return tokenizer_pb2.ToolCall(
            id=call.get("id", ""), name=function["name"], arguments=function["arguments"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{place}={call!r}: must have a function with name and arguments, both text", field=place
        ) from error


def _text_of(content: Any, number: int) -> str:
    field = f"messages[{number}].content"
    if isinstance(content, str):
        _check_text(content, field)
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequest(f"{field}={content!r}: must be text or a list of text parts", field=field)
    for part in content:
        if part.get("type") != "text":
            raise InvalidRequest(f"{field}: a part of type {part.get('type')!r} is not served", field=field)
    return "".join(part["text"] for part in content)


def _check_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field} holds a lone surrogate at {error.start}", field=field) from error
