"""Whatever happens to sequences, a prefix that is found holds the tokens that it is asked for, under the same salt.

The truth is kept apart from all names: what was written into each block, position by position, after which tokens.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from quire_scheduler.core import OwnerId, Request, Sampling
from quire_scheduler.core.kv_manager import KVManager
from quire_scheduler.core.name_table import NamedBlock
from quire_scheduler.core.request import BlockId, Sequence, SlotId

from quire.wire.plan import StepPlan

_SALTS = (b"", b"a", b"a\0", b"\0")


@dataclass
class _World:
    """A manager, its sequences, and what its blocks really hold: (salt, all tokens up to the last one written)."""

    draw: random.Random
    kv: KVManager
    num_blocks: int
    vocab_size: int
    live: list[Sequence] = field(default_factory=list)
    held: dict[BlockId, tuple[bytes, tuple[int, ...]]] = field(default_factory=dict)
    num_requests: int = 0
    num_hits: int = 0

    def admit(self) -> None:
        """A new sequence takes what is found of its prompt."""
        block_size = self.kv.block_size
        length = self.draw.randint(1, self.num_blocks * block_size // 2)
        prompt = [self.draw.randrange(self.vocab_size) for _ in range(length)]
        salt = self.draw.choice(_SALTS)
        self.num_requests += 1
        request = Request(
            owner=OwnerId(1),
            handle=self.num_requests,
            request_id=str(self.num_requests),
            prompt_token_ids=prompt,
            cache_salt=salt,
            sampling=Sampling(max_tokens=50),
        )
        sequence = Sequence(request, 0)
        sequence.slot = SlotId(0)
        hits = self.kv.find_prefix(sequence)
        assert len(hits) * block_size < length
        for index, block in enumerate(hits):
            assert self.held[block] == (salt, tuple(prompt[: (index + 1) * block_size]))
        if self.kv.can_hold(sequence, hits, 0):
            self.num_hits += len(hits)
            self.kv.take_prefix(sequence, list(hits), _plan())
            sequence.num_scheduled = sequence.num_computed = len(hits) * block_size
            self.live.append(sequence)

    def advance(self) -> None:
        """A sequence computes some of its tokens, or draws one more, and offers what it fills."""
        sequence = self.draw.choice(self.live)
        todo = sequence.num_confirmed - sequence.num_scheduled
        if todo == 0:
            sequence.output_token_ids.append(self.draw.randrange(self.vocab_size))
            sequence.num_known = sequence.num_confirmed
            todo = 1
        plan = _plan()
        num_tokens = self.draw.randint(1, todo)
        if self.kv.make_room(sequence, num_tokens, plan):
            for at in range(0, len(plan.copies), 5):
                source, target = plan.copies[at + 3 : at + 5]
                self.held[BlockId(target)] = self.held[BlockId(source)]
            self._write(sequence, num_tokens)
        self.kv.end_plan()
        if self.draw.random() < 0.9:  # else a later step offers what this one has filled
            self._offer(sequence)

    def _offer(self, sequence: Sequence) -> None:
        """At once or later; what is offered may be taken back before and after it is named."""
        named: list[NamedBlock] = []
        if self.draw.random() < 0.5:
            self.kv.offer_later(sequence, sequence.num_scheduled, named)
        else:
            named = self.kv.offer_full_blocks(sequence, sequence.num_scheduled)
        if self.draw.random() < 0.1:
            self.kv.withdraw(named)

    def fork(self) -> None:
        """A sequence gets a sibling that shares its table."""
        parent = self.draw.choice(self.live)
        child = Sequence(parent.request, 1, parent.output_token_ids)
        child.slot = SlotId(1)
        child.num_scheduled = child.num_computed = parent.num_scheduled
        self.kv.fork(parent, child)
        self.live.append(child)

    def end(self) -> None:
        """A sequence gives its blocks back."""
        self.kv.release(self.live.pop(self.draw.randrange(len(self.live))))

    def check_holders(self) -> None:
        """Every block is held by those whose table names it."""
        holders = Counter(block for sequence in self.live for block in sequence.block_table)
        for block in map(BlockId, range(1, self.num_blocks + 1)):
            assert self.kv.pool.num_holders(block) == holders[block]
        assert self.kv.pool.num_available == self.num_blocks - len(holders)

    def _write(self, sequence: Sequence, num_tokens: int) -> None:
        tokens = sequence.tokens(0, sequence.num_confirmed).tolist()
        start = sequence.num_scheduled
        sequence.num_scheduled += num_tokens
        sequence.num_computed = sequence.num_scheduled
        for position in range(start, start + num_tokens):
            block = sequence.block_table[position // self.kv.block_size]
            num_holders = sum(each.block_table.count(block) for each in self.live)
            assert num_holders == 1, "a block that others hold is written to"
            self.held[block] = sequence.request.cache_salt, tuple(tokens[: position + 1])


def _plan() -> StepPlan:
    return StepPlan(group_id=0, epoch=1, step_id=0)


def _num_hits(seed: int, num_operations: int) -> int:
    """Runs a world to its end, checking all the while; how many blocks were found."""
    draw = random.Random(seed)
    block_size, num_blocks = draw.choice((1, 2, 3)), draw.choice((6, 12, 30))
    kv = KVManager(num_blocks, block_size, enable_prefix_caching=True)
    world = _World(draw, kv, num_blocks, vocab_size=draw.choice((1, 2, 3)))
    for _ in range(num_operations):
        kind = draw.random()
        if kind < 0.3 and len(world.live) < 5:
            world.admit()
        elif kind < 0.75 and world.live:
            world.advance()
        elif kind < 0.85 and 0 < len(world.live) < 6:
            world.fork()
        elif world.live:
            world.end()
        if draw.random() < 0.3:  # looking counts what is noted: in between it stays noted
            world.check_holders()
    while world.live:
        world.end()
    assert kv.pool.num_used == 0
    return world.num_hits


@pytest.mark.parametrize("first_seed", range(0, 40, 10))
def test_a_prefix_that_is_found_holds_its_tokens(first_seed: int) -> None:
    hits = [_num_hits(seed, num_operations=600) for seed in range(first_seed, first_seed + 10)]
    assert sum(hits) > 20


def test_blocks_that_are_offered_later_keep_their_step_though_more_are_offered_before() -> None:
    """A step that fails takes back what it filled, and no more."""
    kv = KVManager(8, 1, enable_prefix_caching=True)
    request = Request(
        owner=OwnerId(1),
        handle=1,
        request_id="1",
        prompt_token_ids=[1, 2, 3],
        sampling=Sampling(max_tokens=9),
    )
    sequence = Sequence(request, 0)
    sequence.slot = SlotId(0)
    kv.take_prefix(sequence, [], _plan())
    assert kv.make_room(sequence, 3, _plan())
    named_later: list[NamedBlock] = []
    kv.offer_later(sequence, 2, named_later)
    named_now = kv.offer_full_blocks(sequence, 3)
    assert [block for block, _name in named_later] == sequence.block_table[:2]
    assert [block for block, _name in named_now] == sequence.block_table[2:]


def test_what_is_found_in_a_long_run_holds_its_tokens() -> None:
    """In this one a block is offered that has a name already, where nothing is found after what came before it."""
    assert _num_hits(1612, num_operations=3000)
