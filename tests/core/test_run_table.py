"""The start of a prompt is recognized as far as it agrees with the latest one, while none of those blocks is forgotten."""

import pytest
from quire_scheduler.core.name_table import NO_BLOCK, NameTable
from quire_scheduler.core.request import BlockId
from quire_scheduler.core.run_table import RunTable

_NUM_BLOCKS = 60
_WIDTH = 2


def _content(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(_WIDTH, "little") for number in numbers)


def _blocks(first: int, num: int) -> list[BlockId]:
    return [BlockId(block) for block in range(first, first + num)]


@pytest.mark.parametrize("num_equal", [1, 2, 15, 16, 19, 20])
@pytest.mark.parametrize("num_asked", [16, 20, 30])
def test_blocks_are_found_as_far_as_their_content_agrees(num_equal: int, num_asked: int) -> None:
    runs = RunTable(_NUM_BLOCKS)
    runs.note(_content(*range(20)), _blocks(1, 20))
    asked = _content(*range(num_equal), *range(1000, 1000 + max(0, num_asked - num_equal)))
    assert runs.match(BlockId(1), asked) == _blocks(1, num_equal)


def test_a_run_is_gone_with_any_of_its_blocks_and_replaced_by_a_later_one() -> None:
    runs = RunTable(_NUM_BLOCKS)
    content = _content(*range(20))
    for lost in (1, 7, 20):
        runs.note(content, _blocks(1, 20))
        runs.forget(BlockId(lost))
        assert runs.match(BlockId(1), content) == []

    runs.note(content, _blocks(1, 20))
    runs.note(_content(*range(17)), _blocks(1, 17))
    runs.forget(BlockId(20))
    assert runs.match(BlockId(1), content) == _blocks(1, 17)
    assert runs.match(BlockId(2), content) == []


def test_a_prompt_is_found_through_its_run_and_on_behind_it() -> None:
    table = NameTable(_NUM_BLOCKS)
    named = NO_BLOCK, b"salt"
    for number, block in enumerate(_blocks(1, 30)):
        entered = table.enter(block, _content(number), named)
        assert entered is not None
        named = entered
    table.note_run(_content(*range(20)), _blocks(1, 20))
    assert table.find_prefix(_content(*range(40)), _WIDTH, b"salt") == _blocks(1, 30)
    assert table.find_prefix(_content(*range(18), 50, 51), _WIDTH, b"salt") == _blocks(1, 18)
    assert table.find_prefix(_content(*range(40)), _WIDTH, b"") == []
    table.forget(BlockId(20))
    assert table.find_prefix(_content(*range(40)), _WIDTH, b"salt") == _blocks(1, 19)


def test_blocks_of_a_prompt_that_have_no_name_are_not_found() -> None:
    """They hold what others are known for already."""
    table = NameTable(_NUM_BLOCKS)
    named = NO_BLOCK, b""
    for number, block in enumerate(_blocks(1, 18)):
        entered = table.enter(block, _content(number), named)
        assert entered is not None
        named = entered
    table.note_run(_content(*range(20)), [*_blocks(1, 18), *_blocks(40, 2)])
    assert table.find_prefix(_content(*range(20)), _WIDTH, b"") == _blocks(1, 18)
