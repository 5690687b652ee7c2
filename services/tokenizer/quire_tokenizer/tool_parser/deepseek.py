"""DeepSeek V3, R1 and V3.1: calls in a section of their own, each between special tokens."""

from quire_tokenizer.tool_parser.reader import Reading
from quire_tokenizer.tool_parser.sectioned_tool_parser import SectionedToolParser

_SECTION, _SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL, _SEPARATOR, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


class DeepSeekV31ToolParser(SectionedToolParser):
    """`name<｜tool▁sep｜>{…}` in each call."""

    openers = (_SECTION,)
    call = _CALL
    section_end = _SECTION_END

    def _call(self) -> Reading[None]:
        yield from self._reader.space()
        name = yield from self._reader.name()
        yield from self._reader.space()
        yield from self._reader.expect(_SEPARATOR)
        yield from self._reader.space()
        yield from self._call_of(name)
        yield from self._optional(_CALL_END)


class DeepSeekV3ToolParser(DeepSeekV31ToolParser):
    """`function<｜tool▁sep｜>name`, and the arguments in a fence of Markdown."""

    def _call(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect("function")
        yield from self._reader.expect(_SEPARATOR)
        name = yield from self._reader.name()
        yield from self._reader.space()
        yield from self._reader.expect("```json")
        yield from self._reader.space()
        yield from self._call_of(name)
        yield from self._optional("```")
        yield from self._optional(_CALL_END)
