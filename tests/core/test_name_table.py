"""The names of blocks, against a plain tree of who holds what after whom."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from quire_scheduler.core.name_table import NO_BLOCK, NOWHERE, NamedBlock, NameTable
from quire_scheduler.core.request import BlockId

_NUM_BLOCKS = 6
_BLOCKS = st.integers(1, _NUM_BLOCKS).map(BlockId)
_PARENTS = st.integers(0, _NUM_BLOCKS).map(BlockId)
_CONTENTS = st.sampled_from([b"a", b"b", b"c", b"d"])
_SALT = b"salt"
_ROOT = NO_BLOCK, _SALT
_NEVER_GIVEN = 1_000_000


def _entered(table: NameTable, block: int, content: bytes, parent: NamedBlock = _ROOT) -> NamedBlock:
    named = table.enter(BlockId(block), content, parent)
    assert named is not None
    return named


def test_children_of_one_parent_and_first_blocks_are_told_apart() -> None:
    table = NameTable(_NUM_BLOCKS)
    root = _entered(table, 1, b"a")
    other_root = _entered(table, 2, b"b")
    assert table.find(b"c", root) is None
    entries = [(b"a", _ROOT, root), (b"b", _ROOT, other_root)]
    for block, content, parent in ((3, b"c", root), (4, b"d", root), (5, b"c", other_root)):
        entries.append((content, parent, _entered(table, block, content, parent)))
    for content, parent, named in entries:
        assert table.find(content, parent) == named
    assert table.find(b"d", other_root) is None
    assert table.find(b"never", _ROOT) is None


def test_equal_contents_of_other_salts_are_not_shared() -> None:
    table = NameTable(_NUM_BLOCKS)
    _entered(table, 1, b"a")
    assert table.find(b"a", (NO_BLOCK, b"another")) is None
    assert table.find_prefix(b"a", 1, b"another") == []
    _entered(table, 2, b"a", (NO_BLOCK, b"another"))
    assert table.find_prefix(b"a", 1, b"another") == [2]
    assert table.find_prefix(b"a", 1, _SALT) == [1]


def test_a_place_is_not_taken_twice_and_a_block_not_named_twice() -> None:
    table = NameTable(_NUM_BLOCKS)
    named = _entered(table, 1, b"a")
    assert table.enter(BlockId(2), b"a", _ROOT) is None
    assert table.enter(BlockId(1), b"b", _ROOT) is None
    assert table.find(b"a", _ROOT) == named
    assert table.names[2] == 0


def test_a_block_that_moves_on_brings_none_of_its_old_children_along() -> None:
    table = NameTable(_NUM_BLOCKS)
    old_root = _entered(table, 1, b"a")
    for block, content in ((2, b"c"), (3, b"d")):
        _entered(table, block, content, old_root)
    table.forget(BlockId(1))
    new_root = _entered(table, 1, b"b")
    assert table.find_prefix(b"bc", 1, _SALT) == [1]
    assert table.find_prefix(b"bd", 1, _SALT) == [1]
    new_child = _entered(table, 4, b"c", new_root)
    for block in (2, 3):
        table.forget(BlockId(block))
    assert table.find(b"c", new_root) == new_child


def test_nothing_comes_after_a_block_that_has_lost_its_name() -> None:
    table = NameTable(_NUM_BLOCKS)
    lost = _entered(table, 1, b"a")
    table.forget(BlockId(1))
    assert table.enter(BlockId(2), b"c", lost) is None
    again = _entered(table, 1, b"a")
    assert again != lost
    assert table.enter(BlockId(2), b"c", lost) is None
    assert table.find_prefix(b"ac", 1, _SALT) == [1]
    _entered(table, 3, b"c", again)
    assert table.find(b"c", lost) is None


def test_a_child_that_is_forgotten_and_comes_back_elsewhere_is_not_found_below_its_old_parent() -> None:
    table = NameTable(_NUM_BLOCKS)
    root = _entered(table, 1, b"a")
    _entered(table, 2, b"c", root)
    table.forget(BlockId(2))
    _entered(table, 2, b"c")
    assert table.find_prefix(b"ac", 1, _SALT) == [1]
    assert table.find_prefix(b"c", 1, _SALT) == [2]


def test_nothing_comes_after_nowhere() -> None:
    table = NameTable(_NUM_BLOCKS)
    assert table.enter(BlockId(1), b"a", NOWHERE) is None
    assert table.find(b"a", NOWHERE) is None
    _entered(table, 1, b"a")
    assert table.find(b"a", NOWHERE) is None


@dataclass(eq=False)
class _Node:
    block: BlockId
    children: "dict[bytes, _Node]" = field(default_factory=dict)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.tuples(_BLOCKS, _CONTENTS, _PARENTS), _BLOCKS), max_size=40))
def test_whatever_is_entered_is_found_until_it_or_what_comes_before_is_forgotten(
    changes: list[tuple[BlockId, bytes, BlockId] | BlockId],
) -> None:
    table = NameTable(_NUM_BLOCKS)
    root = _Node(NO_BLOCK)
    nodes: dict[BlockId, _Node] = {}
    for change in changes:
        if isinstance(change, tuple):
            block, content, parent = change
            place = (parent, table.names[parent] or _NEVER_GIVEN) if parent else _ROOT
            node = nodes.get(parent) if parent else root
            named = table.enter(block, content, place)
            if node is None or block in nodes or content in node.children:
                assert named is None
            else:
                assert named is not None
                nodes[block] = node.children[content] = _Node(block)
        elif change in nodes:
            table.forget(change)
            forgotten = nodes.pop(change)
            for node in (root, *nodes.values()):
                node.children = {c: child for c, child in node.children.items() if child is not forgotten}
        for block in map(BlockId, range(1, _NUM_BLOCKS + 1)):
            assert bool(table.names[block]) == (block in nodes)
        _check_subtree(table, root, b"")


def _check_subtree(table: NameTable, node: _Node, content: bytes) -> None:
    """Every path of the model, and no other, is found."""
    for each in (b"a", b"b", b"c", b"d"):
        path = table.find_prefix(content + each, 1, _SALT)
        child = node.children.get(each)
        assert len(path) == len(content) + (child is not None)
        if child is not None:
            assert path[-1] == child.block
            _check_subtree(table, child, content + each)


def test_a_block_that_was_a_child_and_comes_back_without_a_parent_can_be_forgotten() -> None:
    table = NameTable(3)
    root = _entered(table, 1, b"a")
    _entered(table, 2, b"c", root)
    table.forget(BlockId(2))
    _entered(table, 2, b"b")
    table.forget(BlockId(2))
    assert table.find(b"b", _ROOT) is None
