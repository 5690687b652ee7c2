"""Markers in text that arrives in pieces: how much of its end must wait, because it may be the beginning of one."""

from collections.abc import Sequence


def num_held(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that one of `markers` begins with, but is not all of it."""
    longest = min(len(text), max(map(len, markers), default=1) - 1)
    for num_chars in range(longest, 0, -1):
        end = text[-num_chars:]
        if any(marker.startswith(end) for marker in markers):
            return num_chars
    return 0
