"""Mistral: `[TOOL_CALLS]`, then a list of calls (tokenizers before v11) or a name and its arguments, once a call.

The newer form puts `[ARGS]` before the arguments and may put `[CALL_ID]` and an id before that.
"""

import secrets
import string

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading

_ALPHANUMERIC = string.ascii_letters + string.digits


class MistralToolParser(JsonToolParser):
    """Both forms."""

    openers = ("[TOOL_CALLS]",)

    @staticmethod
    def new_id() -> str:
        """Nine letters and digits: the templates of these models refuse other ids."""
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect("[TOOL_CALLS]")
        yield from self._reader.space()
        match (yield from self._reader.peek()):
            case "[":
                yield from self._call_array()
            case "{":
                yield from self._call_object()
            case _:
                yield from self._named_call()

    def _named_call(self) -> Reading[None]:
        name = yield from self._reader.name()
        yield from self._reader.space()
        call_id = None
        if (yield from self._reader.accept("[CALL_ID]")):
            call_id = yield from self._reader.name()
            yield from self._reader.space()
        yield from self._reader.accept("[ARGS]")
        yield from self._reader.space()
        yield from self._call_of(name, call_id)
