"""Python literals over text that arrives in pieces, as JSON. Nothing is evaluated: only literals are understood."""

import ast
import re
import warnings
from typing import Any

from quire_tokenizer.tool_parser.json_value import dumps
from quire_tokenizer.tool_parser.reader import Malformed, Reader, Reading

_PLAIN = re.compile(r"""[^"'()\[\]{},\\]*""")
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_JSON_NAMES = {"true": True, "false": False, "null": None}
"""Models mix the two languages up."""


def read_value(reader: Reader) -> Reading[str]:
    """The JSON of the literal that ends before the next comma or closing bracket, which is not read. Raises `Malformed`."""
    began = reader.at
    closers: list[str] = []
    while True:
        yield from reader.run(_PLAIN)
        char = yield from reader.peek()
        if not closers and char in (",", ")"):
            return to_json(reader.since(began))
        if char in ('"', "'"):
            yield from _string(reader, char)
        elif char in _CLOSERS:
            closers.append(_CLOSERS[char])
            reader.skip(1)
        elif closers and char in (",", closers[-1]):
            if char != ",":
                closers.pop()
            reader.skip(1)
        else:
            raise Malformed


def to_json(source: str) -> str:
    """The JSON of a literal's source. Raises `Malformed`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of escapes that Python does not know
            return dumps(_value(ast.parse(source.strip(), mode="eval").body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise Malformed from None


def _string(reader: Reader, quote: str) -> Reading[None]:
    triple = yield from reader.accept(quote * 3)
    if not triple:
        reader.skip(1)
    end = quote * 3 if triple else quote
    while not (yield from reader.accept(end)):
        char = yield from reader.peek()
        if not char or (char == "\n" and not triple):
            raise Malformed
        reader.skip(1)
        if char == "\\" and (yield from reader.peek()):
            reader.skip(1)


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.Name(id=name) if name in _JSON_NAMES:
            return _JSON_NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(each) for each in node.elts]
        case ast.Dict():
            return {_key(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
        case _:
            raise ValueError(f"not a literal: {ast.dump(node)}")


def _key(node: ast.expr | None) -> str:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        raise ValueError("keys of JSON objects are strings")
    return node.value
