"""Finds the block that holds given content, by the name of the content and the block that holds what comes before it.

A worker's blocks are so many that a hash table of all their names is many times a processor's cache, and every
sequence that fills a block goes to it: a step would cost more the more is remembered. So a name is found through its
parent's block. Blocks that are filled together follow blocks that were granted together, whose places lie side by
side. Only what starts a prefix, or shares its parent with an earlier child, is found by hash.

A child whose parent has been forgotten, or has come back in another block, may not be found: who goes through a
prefix from its start would not have come that far. Names are of the whole prefix, so that none is found by mistake.

Knows no tokens and no sequences, nor who holds a block.
"""

from quire_scheduler.core.request import BlockId

NO_PARENT = BlockId(0)
"""Stands before the first block of a prefix."""


class NameTable:
    """At most one name for each of the blocks 1 to `num_blocks`, and one block for each name after a parent."""

    def __init__(self, num_blocks: int) -> None:
        self._names: list[bytes | None] = [None] * (num_blocks + 1)
        self._parents = [NO_PARENT] * (num_blocks + 1)
        """Of the blocks that are their parent's first child."""
        self._first_children = [NO_PARENT] * (num_blocks + 1)
        self._others: dict[bytes, BlockId] = {}

    def find(self, name: bytes, parent: BlockId) -> BlockId | None:
        """The block of that name after `parent`."""
        child = self._first_children[parent]
        return child if child and self._names[child] == name else self._others.get(name)

    def name_of(self, block: BlockId) -> bytes | None:
        """What a block is named."""
        return self._names[block]

    def enter(self, block: BlockId, name: bytes, parent: BlockId) -> bool:
        """Names a block. False, and no change, when it has a name already or another one is found by this name."""
        names = self._names
        if names[block] is not None or self.find(name, parent) is not None:
            return False
        names[block] = name
        if parent and not self._first_children[parent]:
            self._first_children[parent] = block
            self._parents[block] = parent
        else:
            self._others[name] = block
        return True

    def forget(self, block: BlockId) -> None:
        """Takes a block's name away."""
        name, parent = self._names[block], self._parents[block]
        assert name is not None, f"block {block} has no name to forget"
        self._names[block] = None
        if parent:
            self._first_children[parent] = self._parents[block] = NO_PARENT
        else:
            del self._others[name]
