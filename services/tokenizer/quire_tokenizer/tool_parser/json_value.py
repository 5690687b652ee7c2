"""The grammar of JSON (RFC 8259), over text that arrives in pieces. Builds no value: it says where one ends.

Depth costs no stack: a model may open a million brackets.
"""

import json
import re
from typing import Any

from quire_tokenizer.tool_parser.reader import Malformed, Reader, Reading

_SPACE = re.compile(r"[ \t\n\r]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_DIGITS = re.compile(r"[0-9]*")
_LITERALS = {"t": "true", "f": "false", "n": "null"}


def skip_space(reader: Reader) -> Reading[None]:
    """Reads JSON's white space."""
    yield from reader.run(_SPACE)


def read_value(reader: Reader) -> Reading[None]:
    """Reads one value. Raises `Malformed` at the first character that cannot be part of it, unread."""
    closers: list[str] = []
    while True:
        yield from skip_space(reader)
        opener = yield from reader.peek()
        if opener in ("{", "["):
            reader.skip(1)
            yield from skip_space(reader)
            closer = "}" if opener == "{" else "]"
            if (yield from reader.peek()) != closer:
                closers.append(closer)
                if opener == "{":
                    yield from _key(reader)
                continue
            reader.skip(1)
        else:
            yield from _scalar(reader, opener)
        if (yield from _close(reader, closers)):
            return


def read_string(reader: Reader) -> Reading[str]:
    """The value of the string that comes next."""
    began = reader.at
    yield from _string(reader)
    return loads(reader.since(began))


def loads(text: str) -> Any:
    """The value of a complete JSON text. Raises `Malformed`, also for half a surrogate pair, which no UTF-8 can carry."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Malformed from None
    if isinstance(value, str) and not _is_encodable(value):
        raise Malformed
    return value


def dumps(value: Any) -> str:
    """A value's JSON, as UTF-8 can carry it. Raises `ValueError` for what JSON cannot say, such as NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text if _is_encodable(text) else json.dumps(value, allow_nan=False)


def _close(reader: Reader, closers: list[str]) -> Reading[bool]:
    """After a value: whether it was the outermost. Otherwise the next element is due."""
    while closers:
        yield from skip_space(reader)
        if (yield from reader.accept(",")):
            if closers[-1] == "}":
                yield from skip_space(reader)
                yield from _key(reader)
            return False
        yield from reader.expect(closers.pop())
    return True


def _key(reader: Reader) -> Reading[None]:
    yield from _string(reader)
    yield from skip_space(reader)
    yield from reader.expect(":")


def _scalar(reader: Reader, first: str) -> Reading[None]:
    if first == '"':
        yield from _string(reader)
    elif first in _LITERALS:
        yield from reader.expect(_LITERALS[first])
    else:
        yield from _number(reader)


def _string(reader: Reader) -> Reading[None]:
    yield from reader.expect('"')
    while True:
        yield from reader.run(_PLAIN)
        if (yield from reader.accept('"')):
            return
        yield from reader.expect("\\")
        yield from _escape(reader)


def _escape(reader: Reader) -> Reading[None]:
    if (yield from reader.accept("u")):
        for _ in range(4):
            yield from _one_of(reader, "0123456789abcdefABCDEF")
    else:
        yield from _one_of(reader, '"\\/bfnrt')


def _number(reader: Reader) -> Reading[None]:
    yield from reader.accept("-")
    if not (yield from reader.accept("0")):
        yield from _digits(reader)
    if (yield from reader.accept(".")):
        yield from _digits(reader)
    if (yield from reader.peek()) in ("e", "E"):
        reader.skip(1)
        if (yield from reader.peek()) in ("+", "-"):
            reader.skip(1)
        yield from _digits(reader)


def _digits(reader: Reader) -> Reading[None]:
    yield from _one_of(reader, "0123456789")
    yield from reader.run(_DIGITS)


def _one_of(reader: Reader, chars: str) -> Reading[None]:
    char = yield from reader.peek()
    if not char or char not in chars:
        raise Malformed
    reader.skip(1)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
