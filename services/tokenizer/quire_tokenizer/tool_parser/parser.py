"""ToolParser: finds tool calls in generated text while it is being generated.

A format is a subclass that says how a call opens and writes its grammar in `_calls`. What all formats share is here:
text outside of calls, the deltas, and what becomes of a call that turns out to be none. Knows no HTTP and no tokens.
"""

import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from quire_tokenizer.marker import num_held
from quire_tokenizer.output_delta import OutputDelta, TextDelta, ToolDelta
from quire_tokenizer.tool_parser.reader import Malformed, Reader, Reading


class ToolParser(ABC):
    """One sequence's parser: `feed` it the text as it comes, then `finish`.

    How the text is cut into deltas changes nothing in what they add up to. Nothing is lost: every character is text,
    part of a call's arguments, or a call's markup, as is white space next to a call. A marker is never shown in halves:
    what may become one is held back.

    Arguments are passed on as they come. A call that breaks off then keeps what was passed on, and the rest comes out as
    text, since nothing sent can be taken back; with `holds_calls` (for an answer in one piece) a call comes out whole, or
    else as the text that it is.
    """

    needs_special_tokens: ClassVar[bool] = True
    """Whether markers may be special tokens of a tokenizer, so that `skip_special_tokens` must be off to see them."""
    openers: ClassVar[tuple[str, ...]] = ()
    """Markers, each of which opens a call anywhere in the text."""
    opener_at_start: ClassVar[str] = ""
    """What opens a call only where nothing but white space precedes it, or a call."""

    def __init__(
        self,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        holds_calls: bool = False,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """`tools` are the request's, as in the body: some formats need their parameters' types."""
        self._tools = tools
        self._holds_calls = holds_calls
        self._new_id = new_id or self.new_id
        self._reader = Reader()
        self._opening = (
            re.compile(r"\s*(?:" + "|".join(map(re.escape, self.openers)) + ")") if self.openers else None
        )
        self._out: list[OutputDelta] = []
        self._held: list[ToolDelta] = []
        self._num_started = 0
        self._num_calls = 0
        self._follows_call = False
        self._steps = self._text_and_calls()

    @staticmethod
    def new_id() -> str:
        """A fresh id of a call, in the form that the format's models know."""
        return f"chatcmpl-tool-{secrets.token_hex(16)}"

    @property
    def num_calls(self) -> int:
        """Calls that are complete."""
        return self._num_calls

    def feed(self, delta_text: str) -> list[OutputDelta]:
        """What `delta_text` brings to light."""
        self._reader.add(delta_text)
        next(self._steps, None)
        return self._drain()

    def finish(self) -> list[OutputDelta]:
        """The text has ended: what was held back comes out."""
        self._reader.ended = True
        next(self._steps, None)
        return self._drain()

    @abstractmethod
    def _calls(self) -> Reading[None]:
        """The format's grammar: one opening, and the call or calls behind it. Raises `Malformed`."""

    def _text_and_calls(self) -> Reading[None]:
        at_start = bool(self.opener_at_start)
        while True:
            if at_start and (yield from self._at_opener_at_start()):
                at_start = yield from self._try_calls()
            elif (yield from self._text()):
                at_start = (yield from self._try_calls()) and bool(self.opener_at_start)
            else:
                return

    def _at_opener_at_start(self) -> Reading[bool]:
        began = self._reader.at
        yield from self._reader.space()
        found = yield from self._reader.accept(self.opener_at_start)
        self._reader.rewind(began)
        return found

    def _text(self) -> Reading[bool]:
        """Lets text through up to an opening; whether there is one."""
        reader = self._reader
        while True:
            rest = reader.rest
            if self._opening and (found := self._opening.search(rest)):
                self._show(found.start())
                return True
            if reader.ended:
                # White space after a call is no answer.
                self._show(len(rest) if rest.strip() or not self._follows_call else 0)
                return False
            self._show(len(rest) - _num_held(rest, self.openers))
            yield

    def _try_calls(self) -> Reading[bool]:
        """Reads an opening and its calls; if they are none they become text. Whether they were calls."""
        released, num_calls = self._reader.num_released, self._num_calls
        try:
            yield from self._calls()
            self._reader.release()
        except Malformed:
            self._num_started -= len({delta.index for delta in self._held})
            self._held.clear()
            self._reader.rewind()
            if self._reader.num_released == released:
                yield from self._opening_as_text()
        return self._num_calls > num_calls

    def _opening_as_text(self) -> Reading[None]:
        found = self._opening.match(self._reader.rest) if self._opening else None
        if found:
            self._show(found.end())
        else:
            yield from self._reader.space()
            self._reader.skip(1)
            num_chars = self._reader.at
            self._reader.rewind()
            self._show(num_chars)

    def _show(self, num_chars: int) -> None:
        if num_chars:
            self._follows_call = False
            self._out.append(TextDelta(self._reader.rest[:num_chars]))
            self._reader.skip(num_chars)
            self._reader.release()

    # What grammars are made of.

    def _start(self, name: str, call_id: str | None = None) -> None:
        """A call of `name` has begun, and its arguments follow."""
        if not name:
            raise Malformed
        self._num_started += 1
        self._put(ToolDelta(self._num_started - 1, call_id or self._new_id(), name))

    def _arguments(self, fragment: str) -> None:
        """More arguments of the call that began last."""
        if fragment:
            self._put(ToolDelta(self._num_started - 1, arguments_fragment=fragment))

    def _end(self) -> None:
        """The call that began last is complete."""
        self._num_calls += 1
        self._follows_call = True
        self._out += self._held
        self._held.clear()
        self._reader.release()

    def _put(self, delta: ToolDelta) -> None:
        if self._holds_calls:
            self._held.append(delta)
        else:
            self._out.append(delta)
            self._reader.release()

    def _optional(self, closer: str) -> Reading[bool]:
        """Reads `closer` and white space before it, if it comes."""
        began = self._reader.at
        yield from self._reader.space()
        if (yield from self._reader.accept(closer)):
            return True
        self._reader.rewind(began)
        return False

    def _drain(self) -> list[OutputDelta]:
        merged: list[OutputDelta] = []
        for delta in self._out:
            last = merged[-1] if merged else None
            if isinstance(delta, TextDelta) and isinstance(last, TextDelta):
                merged[-1] = TextDelta(last.text + delta.text)
            elif isinstance(delta, ToolDelta) and isinstance(last, ToolDelta) and last.index == delta.index:
                merged[-1] = ToolDelta(
                    last.index, last.id, last.name, last.arguments_fragment + delta.arguments_fragment
                )
            else:
                merged.append(delta)
        self._out.clear()
        return merged


def _num_held(text: str, openers: Sequence[str]) -> int:
    """Characters at the end of `text` that may belong to an opening: a marker's beginning, and white space before it."""
    before = text[: len(text) - num_held(text, openers)]
    return len(text) - len(before.rstrip())
