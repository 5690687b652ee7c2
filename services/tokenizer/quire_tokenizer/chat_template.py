"""Renders a conversation with a model's chat template.

Templates come with models and are not trusted: they run in Jinja's immutable sandbox, with the few functions that
Hugging Face templates rely on, and their output is bounded.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from quire.errors import ConfigError, InvalidRequest

MAX_RENDERED_CHARS = 8 * 1024 * 1024

_END_OF_FINAL = "\ue0f1\ue0f2\ue0f1"
"""Put after the last message's content, to be found again in the rendered text: private characters, which no template
trims or changes the case of."""


class ChatTemplate:
    """One compiled template.

    Messages have the shapes of OpenAI's API, except that the arguments of tool calls are objects: templates write them
    out themselves. A message's content is text, or a list of parts that are text; each template gets what it can read.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, str], *, with_tools: "ChatTemplate | None" = None
    ) -> None:
        """`with_tools` renders conversations that come with tools, for a model that has a template of its own for them."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock]
        )
        environment.filters["tojson"] = _to_json
        functions: dict[str, Any] = {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        environment.globals.update(functions)
        self._special_tokens = dict(special_tokens)
        self._knows_developer = "developer" in source
        self._with_tools = with_tools
        try:
            self._reads_parts = _walks_content(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"--model: the chat template does not parse: {error}", field="model") from error

    def with_source(self, source: str) -> "ChatTemplate":
        """Another template for the same model. Raises `ConfigError`."""
        return ChatTemplate(source, self._special_tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text. Raises `InvalidRequest` naming what the template rejects."""
        if self._with_tools is not None and (variables or {}).get("tools"):
            return self._with_tools.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                variables=variables,
            )
        _check_messages(messages)
        messages = [self._readable(message) for message in messages]
        if add_generation_prompt and continue_final_message:
            raise InvalidRequest(
                "chat.continue_final_message=true excludes chat.add_generation_prompt=true", field="chat"
            )
        context = {
            "tools": None,
            "documents": None,
            **self._special_tokens,
            **(variables or {}),
            "add_generation_prompt": add_generation_prompt,
        }
        if continue_final_message:
            return self._render_open(messages, context)
        return self._render(messages, context)

    def _readable(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """The message as this template can read it."""
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        text = "\n".join(part["text"] for part in parts)
        # Newer clients say developer where most templates know a system message.
        is_unknown = message["role"] == "developer" and not self._knows_developer
        role = "system" if is_unknown else message["role"]
        return {**message, "role": role, "content": parts if self._reads_parts else text}

    def _render_open(self, messages: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> str:
        """The text up to where the last message's content ends, dropping what the template puts after it."""
        *earlier, final = messages
        content, marked_content = _marked(final["content"])
        marked = self._render([*earlier, {**final, "content": marked_content}], context)
        before, mark, _after = marked.rpartition(_END_OF_FINAL)
        if not mark:
            raise InvalidRequest(
                "chat.continue_final_message: the template leaves the last message out, so it cannot be continued",
                field="chat.continue_final_message",
            )
        before = before.replace(_END_OF_FINAL, "")  # a template may show the content twice
        if content != content.rstrip() and not self._render(messages, context).startswith(before):
            # A template that trims contents would have trimmed this one, but for the mark.
            return before.rstrip()
        return before

    def _render(self, messages: Sequence[Mapping[str, Any]], context: Mapping[str, Any]) -> str:
        try:
            pieces: list[str] = []
            num_chars = 0
            for piece in self._template.generate(**{**context, "messages": list(messages)}):
                num_chars += len(piece)
                if num_chars > MAX_RENDERED_CHARS:
                    raise InvalidRequest(
                        f"chat: the rendered conversation is longer than {MAX_RENDERED_CHARS} characters",
                        field="chat",
                    )
                pieces.append(piece)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InvalidRequest(
                f"chat.messages: the model's template rejects them: {error}", field="chat.messages"
            ) from error
        return "".join(pieces)


def load_chat_template(directory: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate | None:
    """The template of a model directory; None when it has none. Raises `ConfigError`."""
    file = directory / "chat_template.jinja"
    source = file.read_text(encoding="utf-8") if file.is_file() else tokenizer_config.get("chat_template")
    source_with_tools = None
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default") or next(iter(named.values()), None)
        source_with_tools = named.get("tool_use")
    if not source:
        return None
    special = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in tokenizer_config.items()
        if name.endswith("_token") and isinstance(value, str | dict)
    }
    with_tools = ChatTemplate(source_with_tools, special) if source_with_tools else None
    return ChatTemplate(source, special, with_tools=with_tools)


def read_chat_template(file_or_source: str) -> str:
    """The source that --chat-template names or is. Raises `ConfigError`."""
    if any(mark in file_or_source for mark in ("{{", "{%", "\n")):
        return file_or_source
    try:
        return Path(file_or_source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--chat-template={file_or_source}: it is neither a template nor a file that can be read: {error}",
            field="chat_template",
        ) from error


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if not messages:
        raise InvalidRequest(
            "chat.messages is empty: a conversation has at least one message", field="chat.messages"
        )
    for number, message in enumerate(messages):
        if not message["role"]:
            field = f"chat.messages[{number}].role"
            raise InvalidRequest(f"{field} is empty: a message names who speaks", field=field)


def _marked(content: str | list[dict[str, Any]]) -> tuple[str, str | list[dict[str, Any]]]:
    """The text in which a content ends, and the content with a mark at its end."""
    if isinstance(content, str):
        return content, content + _END_OF_FINAL
    last = content[-1]["text"] if content else ""
    return last, [*content[:-1], {"type": "text", "text": last + _END_OF_FINAL}]


def _walks_content(template: nodes.Template) -> bool:
    """Whether a template goes through the parts of a message's content: it then wants a list, as vLLM has it."""
    contents = {"content"}
    for assigned in template.find_all(nodes.Assign):
        if isinstance(assigned.target, nodes.Name) and _is_content(assigned.node, frozenset()):
            contents.add(assigned.target.name)
    return any(_is_content(loop.iter, frozenset(contents)) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node, names: frozenset[str]) -> bool:
    """Whether an expression is a message's content, or a variable among `names`, through filters or not."""
    match node:
        case nodes.Filter(node=nodes.Node() as inner):
            return _is_content(inner, names)
        case nodes.Getattr(attr="content") | nodes.Getitem(arg=nodes.Const(value="content")):
            return True
        case nodes.Name(name=name):
            return name in names
        case _:
            return False


class _GenerationBlock(Extension):
    """`{% generation %}`, which marks an assistant's words for training: here it only shows what is inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own attribute

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The block's body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it escapes nothing for HTML; the same as in transformers."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
