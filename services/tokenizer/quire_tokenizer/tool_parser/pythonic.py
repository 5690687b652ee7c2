"""Calls written as Python: `[get_weather(city="Paris"), now()]`, with keyword arguments that are literals.

Llama 3.2 and others write just that; Llama 4, LFM2 and Olmo 3 put markers around it.
"""

from quire_tokenizer.tool_parser.parser import ToolParser
from quire_tokenizer.tool_parser.python_value import read_value
from quire_tokenizer.tool_parser.reader import Malformed, Reading


class PythonicToolParser(ToolParser):
    """A list in the place of an answer."""

    needs_special_tokens = False
    opener_at_start = "["

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._call_list()

    def _call_list(self) -> Reading[None]:
        reader = self._reader
        yield from reader.expect("[")
        while True:
            yield from self._call()
            yield from reader.space()
            if not (yield from reader.accept(",")):
                break
        yield from reader.expect("]")

    def _call(self) -> Reading[None]:
        """One call. Its name is told when its first argument is known to be one: prose has brackets too."""
        reader = self._reader
        yield from reader.space()
        name = yield from reader.name()
        yield from reader.expect("(")
        arguments: set[str] = set()
        while True:
            yield from reader.space()
            if (yield from reader.accept(")")):
                break
            key = yield from reader.name()
            yield from reader.space()
            yield from reader.expect("=")
            value = yield from read_value(reader)
            if not key.isidentifier() or key in arguments:
                raise Malformed
            if not arguments:
                self._start(name)
            self._arguments(f'{", " if arguments else "{"}"{key}": {value}')
            arguments.add(key)
            if not (yield from reader.accept(",")):
                yield from reader.expect(")")
                break
        if not arguments:
            self._start(name)
        self._arguments("}" if arguments else "{}")
        self._end()


class Llama4PythonicToolParser(PythonicToolParser):
    """Llama 4: with or without its markers."""

    needs_special_tokens = True
    openers = ("<|python_start|>",)

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.accept("<|python_start|>")
        yield from self._reader.space()
        yield from self._call_list()
        yield from self._optional("<|python_end|>")


class Lfm2ToolParser(PythonicToolParser):
    """LFM2."""

    needs_special_tokens = True
    openers = ("<|tool_call_start|>",)
    opener_at_start = ""

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect("<|tool_call_start|>")
        yield from self._reader.space()
        yield from self._call_list()
        yield from self._optional("<|tool_call_end|>")


class Olmo3ToolParser(PythonicToolParser):
    """Olmo 3: no list, one call a line."""

    needs_special_tokens = True
    openers = ("<function_calls>",)
    opener_at_start = ""

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        yield from self._reader.expect("<function_calls>")
        yield from self._call()
        while not (yield from self._optional("</function_calls>")):
            yield from self._call()
