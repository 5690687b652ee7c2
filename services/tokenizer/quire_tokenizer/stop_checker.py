"""Finds stop strings in a growing text and holds back only what may be the beginning of one.

Works on the text of one token at a time, so that the outcome does not depend on how deltas were grouped. Knows no
token and no stream.
"""


class StopChecker:
    """The text of one sequence, as far as it may be shown."""

    def __init__(self, stop: tuple[str, ...], *, include_stop: bool) -> None:
        self._stop = stop
        self._include_stop = include_stop
        self._longest = max(map(len, stop), default=0)
        self._held = ""
        self.found: str | None = None

    def add(self, piece: str, *, may_stop: bool = True) -> str:
        """Takes new text; returns what may be shown. `found` is set once a stop string is complete.

        With `may_stop` false (fewer than min_tokens so far) the text is shown and stops are not looked for in it.
        """
        if not self._stop:
            return piece
        if not may_stop:
            shown, self._held = self._held + piece, ""
            return shown
        text = self._held + piece
        # The first to be complete wins, and of two that end together the longer: so a text that arrives in one piece
        # is cut where it would be had it come character by character.
        match = min(
            ((at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0), default=None
        )
        if match is not None:
            _end, at, self.found = match
            self._held = ""
            return text[: at + len(self.found)] if self._include_stop else text[:at]
        num_held = self._num_held(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back, now that no text follows."""
        shown, self._held = self._held, ""
        return shown

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(len(text), self._longest - 1), 0, -1):
            end = text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0
