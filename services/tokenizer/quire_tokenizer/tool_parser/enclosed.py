"""Formats that put JSON calls, one or a list, between an opening and a closing marker of their own."""

from typing import ClassVar

from quire_tokenizer.tool_parser.json_tool_parser import JsonToolParser
from quire_tokenizer.tool_parser.reader import Reading


class EnclosedToolParser(JsonToolParser):
    """One object or a list of them behind any of `openers`. Closing markers may be missing: some models stop before them."""

    closers: ClassVar[tuple[str, ...]] = ()
    """One for each opener; empty where the format has none."""

    def _calls(self) -> Reading[None]:
        yield from self._reader.space()
        closer = yield from self._opener()
        yield from self._reader.space()
        if (yield from self._reader.peek()) == "[":
            yield from self._call_array()
        else:
            yield from self._call_object()
        if closer:
            yield from self._optional(closer)

    def _opener(self) -> Reading[str]:
        """Reads an opener, if there is one; returns its closer."""
        for opener, closer in zip(self.openers, self.closers, strict=True):
            if (yield from self._reader.accept(opener)):
                return closer
        return ""


class HermesToolParser(EnclosedToolParser):
    """Hermes 2 Pro, Hermes 3, Qwen2.5, Qwen3, Granite 4: one block a call."""

    openers = ("<tool_call>",)
    closers = ("</tool_call>",)


class LongcatToolParser(EnclosedToolParser):
    """LongCat-Flash."""

    openers = ("<longcat_tool_call>",)
    closers = ("</longcat_tool_call>",)


class JambaToolParser(EnclosedToolParser):
    """Jamba 1.5 and Hunyuan A13B: one list."""

    openers = ("<tool_calls>",)
    closers = ("</tool_calls>",)


class GraniteToolParser(EnclosedToolParser):
    """Granite 3: a list behind a token (3.0) or a tag (3.1), or in the place of an answer."""

    openers = ("<|tool_call|>", "<tool_call>")
    closers = ("", "</tool_call>")
    opener_at_start = "["


class Granite20bFcToolParser(EnclosedToolParser):
    """Granite 20B function calling: a marker before each call."""

    openers = ("<function_call>",)
    closers = ("</function_call>",)


class InternLm2ToolParser(EnclosedToolParser):
    """InternLM 2.5."""

    openers = ("<|action_start|><|plugin|>", "<|action_start|> <|plugin|>")
    closers = ("<|action_end|>", "<|action_end|>")


class Phi4MiniJsonToolParser(EnclosedToolParser):
    """Phi-4-mini: plain text that no tokenizer holds for special."""

    needs_special_tokens = False
    openers = ("functools",)
    closers = ("",)
