"""Hermes 2 Pro, Hermes 3, Qwen2.5 and Qwen3: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one block a call."""

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading


class HermesToolParser(JsonToolParser):
    """The closing tag may be missing: some models stop before it."""

    openers = ("<tool_call>",)

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect("<tool_call>")
        yield from self._reader.space()
        yield from self._call_object()
        yield from self._optional("</tool_call>")
