"""ReasoningParser: tells what a model thinks from what it answers, while it is being generated. Knows no HTTP and no tokens."""

from collections.abc import Mapping
from typing import Any, ClassVar

from quire_tokenizer.output_delta import ReasoningDelta, TextDelta

ReasoningOutput = ReasoningDelta | TextDelta


class ReasoningParser:
    """One sequence's parser: `feed` it the text as it comes, then `finish`.

    How the text is cut into deltas changes nothing in what they add up to. Markers are left out and never shown in
    halves; every other character comes out once. Reasoning comes at most once, before the answer; a marker further on is part of the answer.
    """

    opener: ClassVar[str] = "<think>"
    closer: ClassVar[str] = "</think>"
    thinks_from_start: ClassVar[bool] = False
    """Whether the text begins inside the reasoning unless the prompt says otherwise."""
    switch: ClassVar[tuple[str, bool] | None] = ("enable_thinking", True)
    """The variable of the chat template that turns thinking on or off, and its default; None when there is none."""
    needs_special_tokens: ClassVar[bool] = True
    """Whether markers may be special tokens of a tokenizer, so that `skip_special_tokens` must be off to see them."""

    def __init__(self, *, prompt: str = "", chat_template_kwargs: Mapping[str, Any] | None = None) -> None:
        """`prompt` is the rendered conversation, where it is known: its end tells best whether the model thinks already."""
        self._text = ""
        self._state = self._first_state(prompt.rstrip(), chat_template_kwargs or {})

    @property
    def is_done(self) -> bool:
        """Whether all that comes is the answer."""
        return self._state == "answer"

    def feed(self, delta_text: str) -> list[ReasoningOutput]:
        """What `delta_text` brings to light."""
        self._text += delta_text
        return self._advance(ended=False)

    def finish(self) -> list[ReasoningOutput]:
        """The text has ended: what was held back comes out."""
        return self._advance(ended=True)

    def _first_state(self, prompt: str, chat_template_kwargs: Mapping[str, Any]) -> str:
        if prompt.endswith(self.closer):
            return "answer"
        if prompt.endswith(self.opener):
            return "thinking"
        if self.switch and not chat_template_kwargs.get(*self.switch):
            return "answer"
        return "may open, thinking" if self.thinks_from_start else "may open"

    def _advance(self, *, ended: bool) -> list[ReasoningOutput]:
        out: list[ReasoningOutput] = []
        if self._state in ("may open", "may open, thinking") and not self._has_begun(ended=ended):
            return out
        if self._state == "thinking" and (reasoning := self._reasoning(ended=ended)):
            out.append(ReasoningDelta(reasoning))
        if self._state == "answer" and self._text:
            out.append(TextDelta(self._text))
            self._text = ""
        return out

    def _has_begun(self, *, ended: bool) -> bool:
        """Whether the text so far tells if it opens with the marker."""
        start = self._text.lstrip()
        if not ended and start != self.opener and self.opener.startswith(start):
            return False
        if start.startswith(self.opener):
            self._text = start[len(self.opener) :]
            self._state = "thinking"
        else:
            self._state = "thinking" if self._state == "may open, thinking" else "answer"
        return True

    def _reasoning(self, *, ended: bool) -> str:
        before, found, after = self._text.partition(self.closer)
        if found:
            self._state, self._text = "answer", after
            return before
        num_held = 0 if ended else _num_held(self._text, self.closer)
        shown = len(self._text) - num_held
        reasoning, self._text = self._text[:shown], self._text[shown:]
        return reasoning


def _num_held(text: str, marker: str) -> int:
    """Characters at the end of `text` that `marker` begins with."""
    longest = min(len(marker) - 1, len(text))
    return next((num for num in range(longest, 0, -1) if marker.startswith(text[-num:])), 0)
