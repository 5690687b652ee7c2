"""The KV blocks of one worker group: who holds each, and what the unheld ones still remember.

A block is *free* (holds nothing worth keeping), *used* (held by at least one sequence) or *cached* (held by nobody,
but its content is known and can be taken up again). Free + used + cached = total, always. Allocation takes
free blocks first, then the cached block that was let go longest ago (LRU). The pool knows no sequence and no token.

Who comes to hold a block or lets it go is noted, and counted when somebody asks for what depends on it: at the latest by
`settle`, which is called while a device works. Of a long prompt those are hundreds of blocks, and its step waits for none.

Reference counting and LRU reuse of remembered blocks follow the automatic prefix caching of vLLM.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from quire_scheduler.core.name_table import NamedBlock, NameTable
from quire_scheduler.core.request import BlockId


class BlockPool:
    """Reference-counted blocks 1 to `num_blocks`."""

    def __init__(self, num_blocks: int) -> None:
        assert num_blocks > 0, "a pool without blocks cannot serve"
        self.num_blocks = num_blocks
        self._free = [BlockId(block) for block in range(num_blocks, 0, -1)]
        self._cached: OrderedDict[BlockId, None] = OrderedDict()
        self._num_holders = [0] * (num_blocks + 1)
        self._names = NameTable(num_blocks)
        self._uncounted: list[tuple[Callable[[list[BlockId]], None], list[BlockId]]] = []
        """What was noted and not counted yet, in order."""

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing."""
        self.settle()
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody holds but the prefix cache remembers."""
        self.settle()
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks held by at least one sequence."""
        return self.num_blocks - self.num_available

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out."""
        self.settle()
        return len(self._free) + len(self._cached)

    def num_holders(self, block: BlockId) -> int:
        """How many tables name the block."""
        self.settle()
        return self._num_holders[block]

    def can_allocate(self, num: int, hits: Sequence[BlockId] = ()) -> bool:
        """Whether that many can be handed out, and `hits`, which were found, be held beside them."""
        if num <= len(self._free):  # what is not counted yet takes no free block, and no hit is one
            return True
        num_left = self.num_available - num
        return num_left >= len(hits) or num_left >= sum(map(self._cached.__contains__, hits))

    def allocate(self) -> BlockId:
        """A block with one holder and no content. The caller has asked `can_allocate`."""
        if not self._free:
            self.settle()
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._cached.popitem(last=False)
            self._names.forget(block)
        assert self._num_holders[block] == 0, f"block {block} was free and held"
        self._num_holders[block] = 1
        return block

    def allocate_many(self, num: int) -> list[BlockId]:
        """The blocks that as many calls of `allocate` give; read only until `settle` has counted them."""
        if num > len(self._free):
            return [self.allocate() for _ in range(num)]
        start = len(self._free) - num
        blocks = self._free[start:]
        blocks.reverse()
        del self._free[start:]
        self._uncounted.append((self._count_first, blocks))
        return blocks

    def hold(self, blocks: Iterable[BlockId]) -> None:
        """One more holder of each of these used or cached blocks."""
        self._uncounted.append((self._count_more, list(blocks)))

    def let_go(self, blocks: Iterable[BlockId]) -> None:
        """One holder less of each, in this order; the last one leaves a block cached if its content is known, else free."""
        self._uncounted.append((self._count_less, list(blocks)))

    def settle(self) -> None:
        """Counts what was noted."""
        if self._uncounted:
            for count, blocks in self._uncounted:
                count(blocks)
            self._uncounted.clear()

    def find(self, content: bytes, parent: NamedBlock) -> NamedBlock | None:
        """The remembered block with that content after `parent`."""
        return self._names.find(content, parent)

    def find_prefix(self, content: bytes | memoryview, width: int, salt: bytes) -> list[BlockId]:
        """The remembered blocks that start with the start of `content`, `width` bytes each."""
        return self._names.find_prefix(content, width, salt)

    def named(self, block: BlockId) -> NamedBlock:
        """A remembered block and its name."""
        return block, self._names.names[block]

    def remember(self, block: BlockId, content: bytes, parent: NamedBlock) -> NamedBlock | None:
        """Names a used block by what it holds. None when another one is found there, or nothing is after `parent`."""
        is_held = self._num_holders[block] > 0 or self.num_holders(block) > 0
        assert is_held, f"block {block} named while nobody holds it"
        return self._names.enter(block, content, parent)

    def withdraw(self, named: NamedBlock) -> None:
        """Takes back a name whose content was never written; no effect once the block has moved on."""
        block, name = named
        if self._names.names[block] != name:
            return
        self.settle()
        self._names.forget(block)
        if block in self._cached:
            del self._cached[block]
            self._free.append(block)

    def _count_first(self, blocks: list[BlockId]) -> None:
        num_holders = self._num_holders
        for block in blocks:
            assert num_holders[block] == 0, f"block {block} was free and held"
            num_holders[block] = 1

    def _count_more(self, blocks: list[BlockId]) -> None:
        num_holders, cached = self._num_holders, self._cached
        for block in blocks:
            num = num_holders[block]
            if num == 0:
                del cached[block]
            num_holders[block] = num + 1

    def _count_less(self, blocks: list[BlockId]) -> None:
        num_holders, names, cached = self._num_holders, self._names.names, self._cached
        for block in blocks:
            num = num_holders[block] - 1
            assert num >= 0, f"block {block} let go without a holder"
            num_holders[block] = num
            if num == 0:
                if names[block]:
                    cached[block] = None
                else:
                    self._free.append(block)
