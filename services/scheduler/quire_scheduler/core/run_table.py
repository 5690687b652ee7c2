"""Recognizes the start of a long prompt as a whole, where the name table would compare it block by block.

A *run* is the blocks that held the start of a prompt when they were named, with all their content side by side. Of several
that start with one block the latest is known, and only while none of its blocks is forgotten; so runs hold no more than
the blocks themselves do. What no run knows is found through the name table: a run makes nothing found that is not there.
"""

from bisect import bisect_left
from dataclasses import dataclass

from quire_scheduler.core.request import BlockId

_MIN_BLOCKS = 16
"""Shorter starts of prompts are found as fast block by block."""

_NO_RUN = BlockId(0)


@dataclass(frozen=True, slots=True)
class _Run:
    content: bytes
    blocks: list[BlockId]


class RunTable:
    """Runs of the blocks 1 to `num_blocks`, by their first one."""

    def __init__(self, num_blocks: int) -> None:
        self._runs: dict[BlockId, _Run] = {}
        self._first_of = [_NO_RUN] * (num_blocks + 1)
        """By block the first one of its run."""

    def note(self, content: bytes, blocks: list[BlockId]) -> None:
        """Remembers that the blocks, which have names, hold the content, which starts a prompt."""
        if len(blocks) < _MIN_BLOCKS:
            return
        first = blocks[0]
        self.forget(first)
        self._runs[first] = _Run(content, blocks)
        for block in blocks:
            self._first_of[block] = first

    def match(self, first: BlockId, content: bytes) -> list[BlockId]:
        """Blocks of the run that starts with `first`, as far as it holds the start of `content`."""
        run = self._runs.get(first)
        return [] if run is None else run.blocks[: _num_equal(run, content)]

    def forget(self, block: BlockId) -> None:
        """Drops the run that the block is of: the block has lost its name."""
        first = self._first_of[block]
        if first:
            for each in self._runs.pop(first).blocks:
                self._first_of[each] = _NO_RUN


def _num_equal(run: _Run, content: bytes) -> int:
    """How many blocks of a run hold the start of the content."""
    width = len(run.content) // len(run.blocks)
    most = min(len(run.content), len(content)) // width
    if content.startswith(run.content[: most * width]):
        return most
    return bisect_left(
        range(1, most), True, key=lambda num: not content.startswith(run.content[: num * width])
    )
