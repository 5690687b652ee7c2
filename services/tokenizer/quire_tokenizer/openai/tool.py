"""The tools of a chat completion: whether the model may, must or must not call one, and what that asks of the output.

Knows the shapes of tools and choices; the formats in which models write calls are the parsers' business.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from quire.errors import InvalidRequest
from quire.structured_outputs import StructuredOutputsParams
from quire_tokenizer.openai.body import Text
from quire_tokenizer.tool_parser import ToolParser
from quire_tokenizer.tool_parser.forced import (
    NamedToolParser,
    RequiredToolParser,
    named_schema,
    required_schema,
)

ParserFactory = Callable[..., ToolParser]


class Function(BaseModel):
    """What can be called."""

    model_config = ConfigDict(extra="allow")

    name: Text
    description: Text | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """One tool."""

    model_config = ConfigDict(extra="allow")

    type: Literal["function"] = "function"
    function: Function


class FunctionName(BaseModel):
    """A function by name."""

    name: Text


class NamedChoice(BaseModel):
    """The one function that must be called."""

    type: Literal["function"] = "function"
    function: FunctionName


Choice = Literal["none", "auto", "required"] | NamedChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What becomes of the tools of one request."""

    tools: Sequence[Mapping[str, Any]]
    """Those that the model is shown."""
    new_parser: ParserFactory | None
    """Makes the parser of one sequence; None where no call is looked for."""
    constraint: StructuredOutputsParams | None = None
    """What the output is held to, where a call is forced."""
    needs_special_tokens: bool = False
    finishes_as_call: bool = True
    """Whether a sequence with calls ends with finish_reason `tool_calls`; a forced one ends with `stop`."""


def tool_use(
    tools: Sequence[Tool] | None,
    choice: Choice | None,
    auto_parser: type[ToolParser] | None,
    *,
    parallel: bool,
) -> ToolUse:
    """Raises `InvalidRequest` for a choice that cannot be had; `auto_parser` is the server's, if it has one."""
    shown = [tool.model_dump(exclude_none=True) for tool in tools or ()]
    if choice is None:
        choice = "auto" if shown else "none"
    if choice == "none":
        return ToolUse((), None)
    if not shown:
        raise InvalidRequest(f"tool_choice={_shown(choice)}: needs tools", field="tool_choice")
    if isinstance(choice, NamedChoice):
        return _named(shown, choice.function.name)
    if choice == "required":
        schema = required_schema(shown)
        if not parallel:
            schema["maxItems"] = 1
        return ToolUse(shown, partial(RequiredToolParser, shown), StructuredOutputsParams(json=schema))
    if auto_parser is None:
        raise InvalidRequest(
            "tool_choice='auto': the server was started without --enable-auto-tool-choice and --tool-call-parser",
            field="tool_choice",
        )
    return ToolUse(shown, partial(auto_parser, shown), needs_special_tokens=auto_parser.needs_special_tokens)


def _named(shown: Sequence[Mapping[str, Any]], name: str) -> ToolUse:
    names = [tool["function"]["name"] for tool in shown]
    if name not in names:
        raise InvalidRequest(
            f"tool_choice={name!r}: must be one of the tools, {', '.join(names)}", field="tool_choice"
        )
    constraint = StructuredOutputsParams(json=named_schema(shown, name))
    return ToolUse(shown, partial(NamedToolParser, name, shown), constraint, finishes_as_call=False)


def _shown(choice: object) -> str:
    return repr(choice.function.name) if isinstance(choice, NamedChoice) else repr(choice)
