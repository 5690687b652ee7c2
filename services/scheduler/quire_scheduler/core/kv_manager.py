"""Block tables of one worker group: which blocks a sequence gets, shares and gives back.

Sits between the pool (which knows no sequence) and the planner (which knows no block). Every change that the worker
must follow is written into the plan as it is made: grants of new blocks, and copies where a sequence is about to
write into a block that another one holds too (copy-on-write, as in the PagedAttention paper, SOSP 2023).
"""

from array import array
from collections import Counter

from quire.wire.plan import StepPlan
from quire_scheduler.core.block_pool import BlockPool
from quire_scheduler.core.name_table import NO_BLOCK, NOWHERE, NamedBlock
from quire_scheduler.core.request import BlockId, Sequence

KV_GROUP = 0
"""The one group of layers that share a block table; models with several kinds of cache will have more."""


class KVManager:
    """Grants, shares and releases the blocks of sequences."""

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self._enable_prefix_caching = enable_prefix_caching
        self._copy_sources: Counter[BlockId] = Counter()
        self._unnamed: list[tuple[Sequence, int, list[NamedBlock]]] = []
        """Tokens of sequences whose blocks are still to be offered to the prefix cache, and where their names go."""

    def settle(self) -> None:
        """Does what no plan waits for, names and counts of blocks: call it while the device works."""
        self._name_planned()
        self.pool.settle()

    def find_prefix(self, sequence: Sequence) -> list[BlockId]:
        """The longest chain of known blocks that starts the sequence; leaves at least one token to compute."""
        if not self._enable_prefix_caching:
            return []
        self._name_planned()
        num_blocks = (sequence.num_confirmed - 1) // self.block_size
        start = sequence.start(num_blocks * self.block_size)
        return self.pool.find_prefix(start, self.block_size * start.itemsize, sequence.request.cache_salt)

    def can_hold(self, sequence: Sequence, hits: list[BlockId], num_spared: int) -> bool:
        """Whether all known tokens of a waiting sequence fit while `num_spared` blocks stay available."""
        num_needed = self._num_blocks_for(sequence.num_known) - len(hits) + num_spared
        return self.pool.can_allocate(num_needed, hits)

    def take_prefix(self, sequence: Sequence, hits: list[BlockId], plan: StepPlan) -> None:
        """Makes the found blocks the start of the sequence's table."""
        assert not sequence.block_table, f"{sequence} has a table already"
        self.pool.hold(hits)
        _grant(sequence, hits, plan)
        sequence.block_table = hits
        sequence.room = len(hits) * self.block_size
        sequence.next_offer_len = sequence.room + self.block_size
        sequence.last_named = self.pool.named(hits[-1]) if hits else (NO_BLOCK, sequence.request.cache_salt)

    def make_room(self, sequence: Sequence, num_tokens: int, plan: StepPlan) -> bool:
        """Lets the sequence write its next `num_tokens` positions; False, and no change, if blocks are short."""
        start = sequence.num_scheduled
        if num_tokens == 1 and start == sequence.num_blocks * self.block_size:
            return self._append_block(sequence, plan)
        table = sequence.block_table
        shares_tail = start < len(table) * self.block_size and self._is_shared(
            table[start // self.block_size]
        )
        num_missing = max(0, self._num_blocks_for(start + num_tokens) - len(table))
        if not self.pool.can_allocate(num_missing + shares_tail):
            return False
        if shares_tail:
            self._copy_tail(sequence, start // self.block_size, plan)
        if num_missing:
            fresh = self.pool.allocate_many(num_missing)
            table += fresh
            _grant(sequence, fresh, plan)
        sequence.room = len(table) * self.block_size
        return True

    def num_missing_for(self, beams: list[Sequence]) -> int:
        """Blocks that it takes to write one more token of each, copies of shared tails included."""
        tails: Counter[BlockId] = Counter()
        num_new = 0
        for beam in beams:
            index = beam.num_scheduled // self.block_size
            if index < len(beam.block_table):
                tails[beam.block_table[index]] += 1
            else:
                num_new += 1
        copies = (num - (self.pool.num_holders(block) == num) for block, num in tails.items())
        return num_new + sum(copies)

    def _append_block(self, sequence: Sequence, plan: StepPlan) -> bool:
        """What a decoding sequence needs once in a block, and so the only way of `make_room` that must be short."""
        if not self.pool.can_allocate(1):
            return False
        block = self.pool.allocate()
        sequence.append_block(block)
        sequence.room = sequence.num_scheduled + self.block_size
        plan.grants.fromlist([sequence.slot, KV_GROUP, block])
        return True

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Gives the child its parent's table; whoever writes into the shared tail first copies it."""
        self.pool.hold(parent.block_table)
        child.block_table = list(parent.block_table)
        child.last_named = parent.last_named
        child.next_offer_len = parent.next_offer_len
        parent.room = child.room = parent.num_scheduled

    def release(self, sequence: Sequence) -> None:
        """Gives back the table; the tail goes first, so that the cache loses ends of prefixes before starts."""
        self._name_planned()
        self.pool.let_go(reversed(sequence.block_table))
        sequence.block_table = []
        sequence.room = 0

    def offer_full_blocks(self, sequence: Sequence, num_tokens: int) -> list[NamedBlock]:
        """Enters the blocks that the first `num_tokens` tokens fill into the prefix cache; returns the new names.

        Blocks with tokens that are still in flight wait until they are confirmed.
        """
        if self._unnamed:
            self._name_planned()
        named: list[NamedBlock] = []
        self._offer(sequence, num_tokens, named)
        return named

    def offer_later(self, sequence: Sequence, num_tokens: int, named: list[NamedBlock]) -> None:
        """The same before anybody looks for those blocks, at the latest by `settle`; `named` gets the names then.

        What is evicted until then counts as gone: blocks that would have come after it get no names.
        """
        self._unnamed.append((sequence, num_tokens, named))

    def withdraw(self, named: list[NamedBlock]) -> None:
        """Takes back names whose step was never executed."""
        self._name_planned()
        for each in named:
            self.pool.withdraw(each)

    def end_plan(self) -> None:
        """Lets go of the blocks that this plan copies from; until now none could become another copy's target."""
        for block, num_holds in self._copy_sources.items():
            self.pool.let_go([block] * num_holds)
        self._copy_sources.clear()

    def _name_planned(self) -> None:
        for sequence, num_tokens, named in self._unnamed:
            self._offer(sequence, num_tokens, named)
        self._unnamed.clear()

    def _offer(self, sequence: Sequence, num_tokens: int, named: list[NamedBlock]) -> None:
        stop, last_stop = sequence.next_offer_len, min(num_tokens, sequence.num_confirmed)
        while stop <= last_stop:
            start, stop = stop - self.block_size, stop + self.block_size
            sequence.next_offer_len = stop
            if self._enable_prefix_caching:
                self._offer_block(sequence, start, named)

    def _offer_block(self, sequence: Sequence, start: int, named: list[NamedBlock]) -> None:
        content = sequence.tokens(start, start + self.block_size).tobytes()
        block = sequence.block_at(start // self.block_size)
        named_now = self.pool.remember(block, content, sequence.last_named)
        if named_now is not None:
            named.append(named_now)
        sequence.last_named = named_now or self.pool.find(content, sequence.last_named) or NOWHERE

    def _copy_tail(self, sequence: Sequence, index: int, plan: StepPlan) -> None:
        source = sequence.block_table[index]
        target = self.pool.allocate()
        plan.copies += (sequence.slot, KV_GROUP, index, source, target)
        sequence.block_table[index] = target
        self._copy_sources[source] += 1

    def _is_shared(self, block: BlockId) -> bool:
        return self.pool.num_holders(block) - self._copy_sources[block] > 1

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)


def _grant(sequence: Sequence, blocks: list[BlockId], plan: StepPlan) -> None:
    """Tells the worker of blocks at the end of a table."""
    triples = array("i", (sequence.slot, KV_GROUP, 0)) * len(blocks)
    triples[2::3] = array("i", blocks)
    plan.grants += triples
