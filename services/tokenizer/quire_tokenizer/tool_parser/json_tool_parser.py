"""Calls whose arguments are written as JSON: the part that most formats share."""

from quire_tokenizer.tool_parser.json_value import loads, read_string, read_value, skip_space
from quire_tokenizer.tool_parser.parser import ToolParser
from quire_tokenizer.tool_parser.reader import Malformed, Reading


class JsonToolParser(ToolParser):
    """What grammars of such formats are made of."""

    def _object_arguments(self) -> Reading[None]:
        """The JSON object that comes next is the arguments of the call that began last; passed on as it comes."""
        if (yield from self._reader.peek()) != "{":
            raise Malformed
        self._reader.take()
        try:
            for _ in read_value(self._reader):
                self._arguments(self._reader.take())
                yield
        finally:
            self._arguments(self._reader.take())

    def _call_of(self, name: str, call_id: str | None = None) -> Reading[None]:
        """A call whose name is known; its arguments come next."""
        if (yield from self._reader.peek()) != "{":
            raise Malformed
        self._start(name, call_id)
        yield from self._object_arguments()
        self._end()

    def _call_object(self) -> Reading[None]:
        """One call as `{"name": …, "arguments": {…}}`; "parameters" is another name of "arguments"."""
        reader = self._reader
        yield from reader.expect("{")
        name = held = None
        has_arguments = False
        while True:
            yield from skip_space(reader)
            key = yield from read_string(reader)
            yield from skip_space(reader)
            yield from reader.expect(":")
            yield from skip_space(reader)
            if key == "name" and name is None:
                name = yield from read_string(reader)
            elif key in ("arguments", "parameters") and not has_arguments:
                has_arguments = True
                if name is not None and (yield from reader.peek()) == "{":
                    self._start(name)
                    yield from self._object_arguments()
                else:
                    held = yield from self._whole_arguments()
            else:
                yield from read_value(reader)
            yield from skip_space(reader)
            if not (yield from reader.accept(",")):
                break
        yield from reader.expect("}")
        if name is None or not has_arguments:
            raise Malformed
        if held is not None:
            self._start(name)
            self._arguments(held)
        self._end()

    def _whole_arguments(self) -> Reading[str]:
        """Arguments that cannot be passed on as they come: their call has no name yet, or they are JSON inside a string."""
        began = self._reader.at
        yield from read_value(self._reader)
        text = self._reader.since(began)
        if text.startswith('"'):
            text = loads(text)
        value = loads(text)
        if value is None:
            return "{}"
        if not isinstance(value, dict):
            raise Malformed
        return text

    def _call_array(self) -> Reading[None]:
        """Calls as `[{…}, {…}]`."""
        reader = self._reader
        yield from reader.expect("[")
        yield from skip_space(reader)
        while True:
            yield from self._call_object()
            yield from skip_space(reader)
            if not (yield from reader.accept(",")):
                break
            yield from skip_space(reader)
        yield from reader.expect("]")
