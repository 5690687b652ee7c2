"""Finds the block that holds given tokens after given others.

Keys and values at a position depend on every token before it, so a block is known by its content and by the block before
it: the blocks that are remembered form trees, one for every salt (tenant, adapter), and a prompt goes down its tree for as
long as the contents agree. Contents are compared themselves, not by a hash, so that no two can be taken for each other.

A worker's blocks are so many that a hash table over all of them is many times a processor's cache, and every sequence
that fills a block goes to it: a step would cost more the more is remembered. So a block is found through the one before
it. Blocks that are filled together follow blocks that were granted together, whose places lie side by side. Only what
starts a prefix, or comes after the same block as an earlier child, is found by hash.

What comes after a block that has been forgotten is not found again, even if the block has come back since: each naming of a
block is told apart by a number of its own.

Knows no tokens and no sequences, nor who holds a block.
"""

from struct import iter_unpack
from typing import TypeAlias

from quire_scheduler.core.request import BlockId

Name: TypeAlias = int | bytes
"""Stands for all content up to the end of a block: a number that is given out once, or the salt where nothing comes before."""

NamedBlock: TypeAlias = tuple[BlockId, Name]
"""A block as long as it goes by this name."""

NO_BLOCK = BlockId(0)
NO_NAME = 0
NOWHERE: NamedBlock = NO_BLOCK, NO_NAME
"""What nothing comes after."""


class NameTable:
    """Names for some of the blocks 1 to `num_blocks`, and at most one block for each content after a named one."""

    def __init__(self, num_blocks: int) -> None:
        self.names = [NO_NAME] * (num_blocks + 1)
        """By block; read only."""
        self._contents: list[bytes] = [b""] * (num_blocks + 1)
        self._parents = [NO_BLOCK] * (num_blocks + 1)
        """Of the blocks that are their parent's first child."""
        self._first_children = [NO_BLOCK] * (num_blocks + 1)
        self._others: dict[tuple[Name, bytes], BlockId] = {}
        """All that are no first children, by the name before them and their content."""
        self._keys: dict[BlockId, tuple[Name, bytes]] = {}
        """Where they are found there."""
        self._num_given = 0

    def find(self, content: bytes, parent: NamedBlock) -> NamedBlock | None:
        """The block with that content after `parent`."""
        block, name = parent
        child = self._first_children[block]
        if not child or self.names[block] != name or self._contents[child] != content:
            child = self._others.get((name, content), NO_BLOCK)
        return (child, self.names[child]) if child else None

    def find_prefix(self, content: bytes | memoryview, width: int, salt: bytes) -> list[BlockId]:
        """The longest chain of blocks that hold the start of `content`, `width` bytes each."""
        names, contents, first_children = self.names, self._contents, self._first_children
        found: list[BlockId] = []
        block = NO_BLOCK
        for (piece,) in iter_unpack(f"{width}s", content):
            child = first_children[block]
            if not child or contents[child] != piece:
                child = self._others.get((names[block] or salt, piece), NO_BLOCK)
                if not child:
                    break
            found.append(child)
            block = child
        return found

    def enter(self, block: BlockId, content: bytes, parent: NamedBlock) -> NamedBlock | None:
        """Names a block by what it holds after `parent`, which is `(NO_BLOCK, salt)` at the start of a prefix.

        None, and no change, when it has a name already, another one is found there, or its parent has lost its name.
        """
        parent_block, parent_name = parent
        is_orphan = parent_block and self.names[parent_block] != parent_name
        if is_orphan or parent_name == NO_NAME or self.names[block] or self.find(content, parent) is not None:
            return None
        self._num_given += 1
        self.names[block] = self._num_given
        self._contents[block] = content
        if parent_block and not self._first_children[parent_block]:
            self._first_children[parent_block] = block
            self._parents[block] = parent_block
        else:
            key = parent_name, content
            self._others[key] = block
            self._keys[block] = key
        return block, self._num_given

    def forget(self, block: BlockId) -> None:
        """Takes a block's name away."""
        assert self.names[block], f"block {block} has no name to forget"
        self.names[block] = NO_NAME
        self._contents[block] = b""
        parent, child = self._parents[block], self._first_children[block]
        if parent:
            self._parents[block] = self._first_children[parent] = NO_BLOCK
        elif block in self._keys:
            del self._others[self._keys.pop(block)]
        if child:
            self._parents[child] = self._first_children[block] = NO_BLOCK
