"""Calls that `tool_choice` forces: the output is held to a JSON schema, and is a call from its first character.

"required" makes the model write a list of calls, a named function makes it write that function's arguments alone. No model's own
format is involved. Knows no HTTP and no grammar library.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading


class RequiredToolParser(JsonToolParser):
    """Reads `[{"name": …, "parameters": {…}}, …]`."""

    needs_special_tokens = False
    opener_at_start = "["

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._call_array()


class NamedToolParser(JsonToolParser):
    """Reads the arguments of one function."""

    needs_special_tokens = False
    opener_at_start = "{"

    def __init__(
        self,
        name: str,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        holds_calls: bool = False,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(tools, holds_calls=holds_calls, new_id=new_id)
        self._name = name

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._call_of(self._name)


def required_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schema of one or more calls of `tools`."""
    return {"type": "array", "minItems": 1, "items": {"anyOf": [_call_schema(tool) for tool in tools]}}


def named_schema(tools: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """The schema of the arguments of the tool called `name`, which must be one of `tools`."""
    return next(_parameters(tool) for tool in tools if tool["function"]["name"] == name)


def _call_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "name": {"type": "string", "enum": [tool["function"]["name"]]},
            "parameters": _parameters(tool),
        },
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(tool: Mapping[str, Any]) -> dict[str, Any]:
    return tool["function"].get("parameters") or {"type": "object", "properties": {}}
