"""ReasoningParser: tells what a model thinks from what it answers, while it is being generated.

A format is a subclass that names its markers. Knows no HTTP and no tokens.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Any, ClassVar

from quire.structured_outputs import Reasoning
from quire_tokenizer.marker import num_held
from quire_tokenizer.output_delta import ReasoningDelta, TextDelta

ReasoningOutput = ReasoningDelta | TextDelta


class _State(Enum):
    """Where the text is."""

    START = auto()
    THINKING = auto()
    ANSWERING = auto()


class ReasoningParser:
    """One sequence's parser: `feed` it the text as it comes, then `finish`.

    How the text is cut into deltas changes nothing in what they add up to. Markers are left out and never shown in
    halves; every other character comes out once, but for white space before an opening marker. Reasoning comes at most
    once, before the answer; a marker further on is part of the answer.
    """

    openers: ClassVar[tuple[str, ...]] = ("<think>",)
    closers: ClassVar[tuple[str, ...]] = ("</think>",)
    answer_openers: ClassVar[tuple[str, ...]] = ()
    """What ends the reasoning too, and is part of the answer: a tool call that a model makes in the midst of it."""
    thinks_from_start: ClassVar[bool] = False
    """Whether the text begins inside the reasoning, with or without a marker, unless the prompt says otherwise."""
    switch: ClassVar[tuple[str, bool] | None] = ("enable_thinking", True)
    """The chat template's variable that turns thinking on or off, and its default; None when there is none."""
    needs_special_tokens: ClassVar[bool] = True
    """Whether markers may be special tokens of a tokenizer, so that `skip_special_tokens` must be off to see them."""

    def __init__(
        self,
        *,
        prompt: str = "",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        is_constrained: bool = False,
    ) -> None:
        """`prompt` is the rendered conversation, where it is known: its end tells best whether the model thinks already.

        With `is_constrained` the answer is held to `reasoning_before` it, which nothing but a closing marker ends.
        """
        self._text = ""
        self._markers = self.closers if is_constrained else (*self.closers, *self.answer_openers)
        self._state = self._first_state(prompt.rstrip(), chat_template_kwargs or {})

    @property
    def reasoning_before(self) -> Reasoning | None:
        """What may come before a constrained answer, as `feed` will read it; None before the answer itself."""
        if self._state is _State.ANSWERING:
            return None
        begun = self._state is _State.THINKING or self.thinks_from_start
        openers = () if self._state is _State.THINKING else self.openers
        return Reasoning(openers=openers, closers=self.closers, begun=begun)

    @property
    def is_done(self) -> bool:
        """Whether all that comes is the answer."""
        return self._state is _State.ANSWERING

    def feed(self, delta_text: str) -> list[ReasoningOutput]:
        """What `delta_text` brings to light."""
        self._text += delta_text
        return self._advance(ended=False)

    def finish(self) -> list[ReasoningOutput]:
        """The text has ended: what was held back comes out."""
        return self._advance(ended=True)

    def _first_state(self, prompt: str, chat_template_kwargs: Mapping[str, Any]) -> _State:
        if prompt.endswith(self.closers):
            return _State.ANSWERING
        if prompt.endswith(self.openers):
            return _State.THINKING
        if self.switch and not chat_template_kwargs.get(*self.switch):
            return _State.ANSWERING
        return _State.START

    def _advance(self, *, ended: bool) -> list[ReasoningOutput]:
        out: list[ReasoningOutput] = []
        if self._state is _State.START:
            self._begin(ended=ended)
        if self._state is _State.THINKING and (reasoning := self._reasoning(ended=ended)):
            out.append(ReasoningDelta(reasoning))
        if self._state is _State.ANSWERING and self._text:
            out.append(TextDelta(self._text))
            self._text = ""
        return out

    def _begin(self, *, ended: bool) -> None:
        """Leaves START once the text tells whether a marker opens it."""
        start = self._text.lstrip()
        opener = next((opener for opener in self.openers if start.startswith(opener)), None)
        if opener is not None:
            self._text = start.removeprefix(opener)
            self._state = _State.THINKING
        elif ended or not any(opener.startswith(start) for opener in self.openers):
            self._state = _State.THINKING if self.thinks_from_start else _State.ANSWERING

    def _reasoning(self, *, ended: bool) -> str:
        markers = self._markers
        at, marker = min(
            ((at, marker) for marker in markers if (at := self._text.find(marker)) >= 0), default=(-1, "")
        )
        if marker:
            self._state = _State.ANSWERING
            return self._take(at, num_dropped=len(marker) if marker in self.closers else 0)
        return self._take(len(self._text) - (0 if ended else num_held(self._text, markers)))

    def _take(self, num_chars: int, num_dropped: int = 0) -> str:
        taken, self._text = self._text[:num_chars], self._text[num_chars + num_dropped :]
        return taken
