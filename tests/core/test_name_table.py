"""The names of blocks, against a plain list of who is named what after whom."""

from hypothesis import given, settings
from hypothesis import strategies as st
from quire_scheduler.core.name_table import NO_PARENT, NameTable
from quire_scheduler.core.request import BlockId

_NUM_BLOCKS = 6
_BLOCKS = st.integers(1, _NUM_BLOCKS).map(BlockId)
_PARENTS = st.integers(0, _NUM_BLOCKS).map(BlockId)
_NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])


def test_children_of_one_parent_and_first_blocks_are_told_apart() -> None:
    table = NameTable(_NUM_BLOCKS)
    entries = [
        (1, b"root", 0),
        (2, b"other root", 0),
        (3, b"child", 1),
        (4, b"second child", 1),
        (5, b"cousin", 2),
    ]
    for block, name, parent in entries:
        assert table.enter(BlockId(block), name, BlockId(parent))
    for block, name, parent in entries:
        assert table.find(name, BlockId(parent)) == block
    assert table.find(b"child", BlockId(2)) is None
    assert table.find(b"never", NO_PARENT) is None


def test_a_name_is_not_given_twice_and_a_block_not_named_twice() -> None:
    table = NameTable(_NUM_BLOCKS)
    assert table.enter(BlockId(1), b"root", NO_PARENT)
    assert not table.enter(BlockId(2), b"root", NO_PARENT)
    assert not table.enter(BlockId(1), b"another", NO_PARENT)
    assert table.name_of(BlockId(1)) == b"root"
    assert table.name_of(BlockId(2)) is None


def test_a_block_that_moves_on_brings_none_of_its_old_children_along() -> None:
    table = NameTable(_NUM_BLOCKS)
    assert table.enter(BlockId(1), b"old root", NO_PARENT)
    assert table.enter(BlockId(2), b"old child", BlockId(1))
    table.forget(BlockId(1))
    assert table.enter(BlockId(1), b"new root", NO_PARENT)
    assert table.find(b"new child", BlockId(1)) is None
    assert table.enter(BlockId(3), b"new child", BlockId(1))
    assert table.find(b"new child", BlockId(1)) == 3
    table.forget(BlockId(2))
    assert table.find(b"old child", BlockId(1)) is None
    assert table.find(b"new child", BlockId(1)) == 3


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.tuples(_BLOCKS, _NAMES, _PARENTS), _BLOCKS), max_size=40))
def test_whatever_is_entered_is_found_until_it_is_forgotten(
    changes: list[tuple[BlockId, bytes, BlockId] | BlockId],
) -> None:
    table = NameTable(_NUM_BLOCKS)
    entered: dict[BlockId, tuple[bytes, BlockId]] = {}
    for change in changes:
        if isinstance(change, tuple):
            block, name, parent = change
            known = table.find(name, parent)
            assert table.enter(block, name, parent) == (known is None and block not in entered)
            if known is None and block not in entered:
                entered[block] = name, parent
        elif change in entered:
            table.forget(change)
            del entered[change]
        for block in map(BlockId, range(1, _NUM_BLOCKS + 1)):
            named = entered.get(block)
            assert table.name_of(block) == (named and named[0])
            assert named is None or table.find(*named) == block


def test_a_block_that_was_a_child_and_comes_back_without_a_parent_can_be_forgotten() -> None:
    table = NameTable(3)
    table.enter(BlockId(1), b"a", NO_PARENT)
    table.enter(BlockId(2), b"child", BlockId(1))
    table.forget(BlockId(2))
    table.enter(BlockId(2), b"b", NO_PARENT)
    table.forget(BlockId(2))
    assert table.find(b"b", NO_PARENT) is None
