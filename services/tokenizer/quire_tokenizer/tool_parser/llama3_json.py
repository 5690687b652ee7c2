"""Llama 3.1 to 4 in JSON: `{"name": …, "parameters": {…}}` in the place of an answer, or behind `<|python_tag|>`."""

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading

_PYTHON_TAG = "<|python_tag|>"


class Llama3JsonToolParser(JsonToolParser):
    """Without the tag, a call begins where the answer begins. Several are separated by a semicolon, or by nothing."""

    openers = (_PYTHON_TAG,)
    opener_at_start = "{"

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.accept(_PYTHON_TAG)
        yield from self._reader.space()
        yield from self._call_object()
        while (yield from self._another()):
            yield from self._reader.space()
            yield from self._call_object()

    def _another(self) -> Reading[bool]:
        """Reads a separator, if a call may follow it."""
        began = self._reader.at
        yield from self._optional(";")
        yield from self._reader.space()
        if (yield from self._reader.peek()) == "{":
            return True
        self._reader.rewind(began)
        return False
