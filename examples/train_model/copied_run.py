"""Finds what a generated text copied: the longest run of tokens that also stands in a source text.

It knows token ids only; both sides must come from the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence


class CopiedRunFinder:
    """Holds a source text as a string of one character per token, in which `in` finds runs of tokens."""

    def __init__(self, source_ids: Sequence[int]) -> None:
        self._source = _as_characters(source_ids)

    def longest_run(self, token_ids: Sequence[int]) -> int:
        """Return the length in tokens of the longest run of `token_ids` that the source holds."""
        characters = _as_characters(token_ids)
        longest = 0
        for begin in range(len(characters)):
            while (
                begin + longest < len(characters) and characters[begin : begin + longest + 1] in self._source
            ):
                longest += 1
        return longest


def _as_characters(token_ids: Sequence[int]) -> str:
    return "".join(map(chr, token_ids))
