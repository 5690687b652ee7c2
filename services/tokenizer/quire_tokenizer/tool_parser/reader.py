"""Text that arrives in pieces, read by a grammar that waits where it needs more.

A grammar is a generator: it yields when it has to wait, and is resumed when there is more. So it is written as if the whole text
were there, and where the text was cut into pieces cannot change what it reads. Knows no format.
"""

import re
from collections.abc import Generator
from typing import TypeVar

_T = TypeVar("_T")

Reading = Generator[None, None, _T]
"""Yields where it waits for more text; returns what was read."""

_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"""[^\s<>\[\](){}"'=,;]*""")


class Malformed(Exception):
    """The text is not what the grammar wants. Says only where reading stops: the text is still there to be read again."""


class Reader:
    """The text that has not been released yet, and the place in it."""

    def __init__(self) -> None:
        self.num_released = 0
        """Characters given away so far."""
        self.ended = False
        """Whether nothing is to come."""
        self._text = ""
        self._at = 0
        self._taken = 0

    def add(self, piece: str) -> None:
        """More text."""
        self._text += piece

    @property
    def rest(self) -> str:
        """What has arrived and is not read."""
        return self._text[self._at :]

    @property
    def at(self) -> int:
        """The place, counted from the last release."""
        return self._at

    def since(self, place: int) -> str:
        """What was read since the reader was at `place`."""
        return self._text[place : self._at]

    def take(self) -> str:
        """What was read since it was last asked."""
        taken, self._taken = self._text[self._taken : self._at], self._at
        return taken

    def release(self) -> None:
        """Forgets what was read: it cannot be read again."""
        self.num_released += self._at
        self._text = self._text[self._at :]
        self._at = self._taken = 0

    def rewind(self, place: int = 0) -> None:
        """Back to an earlier place: by default to where it last released."""
        self._at = place
        self._taken = min(self._taken, place)

    def skip(self, num_chars: int) -> None:
        """Reads characters that have arrived."""
        self._at += num_chars

    def peek(self) -> Reading[str]:
        """The next character, unread; empty at the end."""
        while self._at >= len(self._text):
            if self.ended:
                return ""
            yield
        return self._text[self._at]

    def run(self, pattern: re.Pattern[str]) -> Reading[None]:
        """Reads as many characters as `pattern` matches, one of `[...]*` kind."""
        while True:
            match = pattern.match(self._text, self._at)
            if match:
                self._at = match.end()
            if self._at < len(self._text) or self.ended:
                return
            yield

    def space(self) -> Reading[None]:
        """Reads white space, if there is any."""
        yield from self.run(_SPACE)

    def expect(self, literal: str) -> Reading[None]:
        """Reads `literal`, character by character; raises `Malformed` at the first that differs."""
        for char in literal:
            if (yield from self.peek()) != char:
                raise Malformed
            self._at += 1

    def accept(self, literal: str) -> Reading[bool]:
        """Whether `literal` comes next. Reads all of it or nothing."""
        for num_read, char in enumerate(literal):
            if (yield from self.peek()) != char:
                self._at -= num_read
                return False
            self._at += 1
        return True

    def name(self) -> Reading[str]:
        """A function's name. Raises `Malformed` where there is none."""
        began = self._at
        yield from self.run(_NAME)
        if self._at == began:
            raise Malformed
        return self.since(began)

    def until(self, marker: str) -> Reading[str]:
        """The text before `marker`, which is read too. Raises `Malformed` when it does not come."""
        began = searched = self._at
        while (found := self._text.find(marker, searched)) < 0:
            searched = max(began, len(self._text) - len(marker) + 1)
            if self.ended:
                raise Malformed
            yield
        self._at = found + len(marker)
        return self._text[began:found]
