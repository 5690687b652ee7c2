"""Calls in a section of their own, each between markers: what DeepSeek's and Kimi's formats share. Knows no call's inside."""

from abc import abstractmethod
from typing import ClassVar

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading


class SectionedToolParser(JsonToolParser):
    """A section's opening, one call or more, and its end, which models sometimes forget."""

    call: ClassVar[str]
    """Opens each call."""
    section_end: ClassVar[str]

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect(self.openers[0])
        yield from self._reader.space()
        yield from self._reader.expect(self.call)
        yield from self._call()
        while (yield from self._optional(self.call)):
            yield from self._call()
        yield from self._optional(self.section_end)

    @abstractmethod
    def _call(self) -> Reading[None]:
        """One call, behind its opening. Raises `Malformed`."""
