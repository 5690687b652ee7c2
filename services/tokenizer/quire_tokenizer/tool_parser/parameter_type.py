"""The type that a tool's schema declares for a parameter, and a value of that type from bare text. Knows no format."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from quire_tokenizer.tool_parser.json_value import dumps, loads
from quire_tokenizer.tool_parser.python_value import to_json
from quire_tokenizer.tool_parser.reader import Malformed

STRING = frozenset({"string"})
_SPELLINGS = {"true": "true", "false": "false", "null": "null", "none": "null"}


def parameter_types(tools: Sequence[Mapping[str, Any]], function: str, parameter: str) -> frozenset[str]:
    """JSON Schema's names of the types that it may have; "string" alone when nothing is declared."""
    for tool in tools:
        declared = _mapping(tool.get("function"))
        if declared.get("name") == function:
            schema = _mapping(_mapping(declared.get("parameters")).get("properties")).get(parameter)
            return frozenset(_types(schema)) or STRING
    return STRING


def value_of(text: str, types: frozenset[str]) -> str:
    """The JSON of a bare value of one of `types`; of a string where it is none of them."""
    if types == STRING:
        return dumps(text)
    bare = text.strip()
    spelling = _SPELLINGS.get(bare.lower())
    if spelling and (spelling == "null" or "boolean" in types):
        return spelling
    for candidate in _readings(bare):
        if _type_of(loads(candidate)) & types:
            return candidate
    return dumps(text)


def _types(schema: Any) -> Iterator[str]:
    """What a schema says, as far as it is well-formed: it is the client's."""
    schema = _mapping(schema)
    declared = schema.get("type")
    yield from (each for each in _list(declared) or [declared] if isinstance(each, str))
    for word in ("anyOf", "oneOf", "allOf"):
        for option in _list(schema.get(word)):
            yield from _types(option)
    if declared is None:
        for value in _list(schema.get("enum")):
            yield from _type_of(value)
        if "$ref" in schema or "properties" in schema:
            yield from ("object", "array", "integer", "number", "boolean", "string")


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _readings(bare: str) -> Iterator[str]:
    """The text as JSON, or the Python literal that it is."""
    try:
        loads(bare)
        yield bare
    except Malformed:
        try:
            yield to_json(bare)
        except Malformed:
            return


def _type_of(value: Any) -> frozenset[str]:
    match value:
        case None:
            return frozenset({"null"})
        case bool():
            return frozenset({"boolean"})
        case int():
            return frozenset({"integer", "number"})
        case float():
            return frozenset({"number", "integer"} if value.is_integer() else {"number"})
        case str():
            return STRING
        case list():
            return frozenset({"array"})
        case _:
            return frozenset({"object"})
