"""Kimi K2: calls in a section of their own, each with an id that holds the name: `functions.get_weather:0`."""

from quire_tokenizer.tool_parser.reader import Reading
from quire_tokenizer.tool_parser.sectioned_tool_parser import SectionedToolParser

_SECTION, _SECTION_END = "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"
_CALL, _ARGUMENTS, _CALL_END = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"


class KimiK2ToolParser(SectionedToolParser):
    """The id that the model writes is the call's id: the template wants it back."""

    openers = (_SECTION,)
    call = _CALL
    section_end = _SECTION_END

    def _call(self) -> Reading[None]:
        yield from self._reader.space()
        call_id = yield from self._reader.name()
        yield from self._reader.space()
        yield from self._reader.expect(_ARGUMENTS)
        yield from self._reader.space()
        yield from self._call_of(call_id.removeprefix("functions.").rpartition(":")[0] or call_id, call_id)
        yield from self._optional(_CALL_END)
