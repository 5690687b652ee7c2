"""Calls written as tags, one for each argument, with bare values: the tool's schema says which of them are strings.

Strings are passed on as they come, other values when they are complete.
"""

import re
from dataclasses import dataclass
from typing import ClassVar

from quire_tokenizer.marker import num_held
from quire_tokenizer.tool_parser.json_value import dumps
from quire_tokenizer.tool_parser.parameter_type import STRING, parameter_types, value_of
from quire_tokenizer.tool_parser.parser import ToolParser
from quire_tokenizer.tool_parser.reader import Malformed, Reading

_KEY = re.compile(r"""[^<>"\n]*""")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tags:
    """The markers of a format, in the order in which they come. Parts of one tag may have white space between them."""

    section: str = ""
    """Before the calls; may be missing where calls have an opening of their own among `openers`."""
    call: str
    """Before the name."""
    call_opened: str = ""
    """After the name."""
    parameter: str
    """Before an argument's name."""
    parameter_opened: tuple[str, ...]
    """After it."""
    parameter_end: str
    call_end: str
    section_end: str = ""
    newline_padded: bool = False
    """Whether a value stands on lines of its own."""


class XmlToolParser(ToolParser):
    """The grammar; a format gives its `tags`."""

    tags: ClassVar[Tags]

    def _calls(self) -> Reading[None]:
        tags = self.tags
        yield from self._reader.space()
        if tags.section:
            yield from self._reader.accept(tags.section)
            yield from self._reader.space()
        yield from self._reader.expect(tags.call)
        yield from self._call()
        while tags.section and (yield from self._optional(tags.call)):
            yield from self._call()
        if tags.section_end:
            yield from self._optional(tags.section_end)

    def _call(self) -> Reading[None]:
        reader = self._reader
        yield from reader.space()
        name = yield from reader.name()
        yield from reader.expect(self.tags.call_opened)
        yield from reader.space()
        if not (yield from self._opens_or_ends()):
            raise Malformed
        self._start(name)
        self._arguments("{")
        before = ""
        while (yield from self._optional(self.tags.parameter)):
            self._arguments(before)
            yield from self._parameter(name)
            before = ", "
        yield from reader.space()
        yield from reader.expect(self.tags.call_end)
        self._arguments("}")
        self._end()

    def _opens_or_ends(self) -> Reading[bool]:
        """Whether what follows a name looks like a call at all; reads nothing."""
        began = self._reader.at
        found = (yield from self._reader.accept(self.tags.parameter)) or (
            yield from self._reader.accept(self.tags.call_end)
        )
        self._reader.rewind(began)
        return found

    def _parameter(self, function: str) -> Reading[None]:
        reader = self._reader
        began = reader.at
        yield from reader.run(_KEY)
        key = reader.since(began).strip()
        types = parameter_types(self._tools, function, key)
        for part in self.tags.parameter_opened:
            yield from reader.space()
            yield from reader.expect(part)
        types = yield from self._declared_here(types)
        self._arguments(f"{dumps(key)}: ")
        if self.tags.newline_padded:
            yield from reader.accept("\n")
        if types == STRING:
            yield from self._string()
        else:
            text = yield from reader.until(self.tags.parameter_end)
            self._arguments(value_of(text.removesuffix("\n") if self.tags.newline_padded else text, types))

    def _declared_here(self, types: frozenset[str]) -> Reading[frozenset[str]]:
        """The types of the value that comes next, for a format whose tags tell them too."""
        return types
        yield

    def _string(self) -> Reading[None]:
        reader = self._reader
        end = self.tags.parameter_end
        ends = (f"\n{end}", end) if self.tags.newline_padded else (end,)
        self._arguments('"')
        while True:
            rest = reader.rest
            found = min((at for at in map(rest.find, ends) if at >= 0), default=-1)
            self._text_of_string(found if found >= 0 else len(rest) - num_held(rest, ends))
            if found >= 0:
                break
            if reader.ended:
                raise Malformed
            yield
        if self.tags.newline_padded:
            yield from reader.accept("\n")
        yield from reader.expect(end)
        self._arguments('"')

    def _text_of_string(self, num_chars: int) -> None:
        text = self._reader.rest[:num_chars]
        self._reader.skip(num_chars)
        self._arguments(dumps(text)[1:-1])


class Qwen3CoderToolParser(XmlToolParser):
    """Qwen3-Coder; the outer tag is sometimes forgotten."""

    openers = ("<tool_call>", "<function=")
    tags = Tags(
        section="<tool_call>",
        call="<function=",
        call_opened=">",
        parameter="<parameter=",
        parameter_opened=(">",),
        parameter_end="</parameter>",
        call_end="</function>",
        section_end="</tool_call>",
        newline_padded=True,
    )


class SeedOssToolParser(XmlToolParser):
    """Seed-OSS."""

    openers = ("<seed:tool_call>",)
    tags = Tags(
        section="<seed:tool_call>",
        call="<function=",
        call_opened=">",
        parameter="<parameter=",
        parameter_opened=(">",),
        parameter_end="</parameter>",
        call_end="</function>",
        section_end="</seed:tool_call>",
        newline_padded=True,
    )


class MinimaxM2ToolParser(XmlToolParser):
    """MiniMax-M2."""

    openers = ("<minimax:tool_call>",)
    tags = Tags(
        section="<minimax:tool_call>",
        call='<invoke name="',
        call_opened='">',
        parameter='<parameter name="',
        parameter_opened=('">',),
        parameter_end="</parameter>",
        call_end="</invoke>",
        section_end="</minimax:tool_call>",
        newline_padded=True,
    )


class Glm45ToolParser(XmlToolParser):
    """GLM 4.5 to 4.7."""

    openers = ("<tool_call>",)
    tags = Tags(
        call="<tool_call>",
        parameter="<arg_key>",
        parameter_opened=("</arg_key>", "<arg_value>"),
        parameter_end="</arg_value>",
        call_end="</tool_call>",
    )


class DeepSeekV32ToolParser(XmlToolParser):
    """DeepSeek V3.2: each argument says whether it is a string; others are JSON."""

    openers = ("<｜DSML｜function_calls>",)
    tags = Tags(
        section="<｜DSML｜function_calls>",
        call='<｜DSML｜invoke name="',
        call_opened='">',
        parameter='<｜DSML｜parameter name="',
        parameter_opened=('"', 'string="'),
        parameter_end="</｜DSML｜parameter>",
        call_end="</｜DSML｜invoke>",
        section_end="</｜DSML｜function_calls>",
    )

    def _declared_here(self, types: frozenset[str]) -> Reading[frozenset[str]]:
        is_string = yield from self._reader.accept("true")
        if not is_string:
            yield from self._reader.expect("false")
        yield from self._reader.expect('">')
        return STRING if is_string else frozenset({"object", "array", "integer", "number", "boolean", "null"})
