"""The padded sizes of steps: few, close, and the same for the same plan."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quire_worker.step_shape import ShapeTable, StepShape

MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN = 300, 4090, 5000  # no multiple of anything that is padded to


@given(
    num_tokens=st.integers(1, MAX_NUM_TOKENS),
    share=st.floats(0, 1),
    limit=st.integers(0, 8192),
    is_decode=st.booleans(),
    max_seq_len=st.integers(1, MAX_MODEL_LEN),
)
@example(num_tokens=MAX_NUM_TOKENS, share=0.1, limit=0, is_decode=False, max_seq_len=1)
def test_every_step_fits_its_shape_and_small_ones_are_captured(
    num_tokens: int, share: float, limit: int, is_decode: bool, max_seq_len: int
) -> None:
    num_rows = max(1, round(min(MAX_NUM_SEQS, num_tokens) * share))
    if is_decode:
        num_tokens = num_rows
    table = ShapeTable(MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN, limit)
    shape = table.shape_of(num_tokens, num_rows, is_decode=is_decode, max_seq_len=max_seq_len)
    assert shape.max_seq_len >= max_seq_len
    assert shape.num_rows >= num_rows
    assert num_tokens <= shape.num_tokens <= MAX_NUM_TOKENS
    assert shape.is_decode is is_decode
    captured = table.captured()
    if limit and (is_decode or num_tokens <= min(limit, MAX_NUM_TOKENS)):
        assert shape in captured, "no step that a graph could hold is launched kernel by kernel"
    if not limit:
        assert captured == []


def test_graphs_are_captured_largest_first() -> None:
    captured = ShapeTable(MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN, 1024).captured()
    assert captured == sorted(captured, reverse=True)
    assert len(captured) == len(set(captured)) < 160


@pytest.mark.parametrize("num_rows", [1, 32, 128, 129])
def test_steps_that_prompts_fill_are_captured_in_few_rows(num_rows: int) -> None:
    table = ShapeTable(MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN, 1024)
    full = table.shape_of(MAX_NUM_TOKENS, num_rows, is_decode=False, max_seq_len=80)
    assert (full in table.captured()) == (num_rows <= 128)
    nearly = table.shape_of(MAX_NUM_TOKENS - 64, num_rows, is_decode=False, max_seq_len=80)
    assert nearly not in table.captured()


def test_few_draws_serve_every_shape() -> None:
    table = ShapeTable(MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN, 1024)
    shapes, rows = table.captured(), table.captured_rows()
    assert {shape.num_rows for shape in shapes} == set(rows)
    assert rows == sorted(set(rows), reverse=True)
    assert len(rows) < len(shapes) / 2


@pytest.mark.parametrize(
    ("num_tokens", "num_rows", "is_decode", "max_seq_len", "shape"),
    [
        (1, 1, True, 1024, StepShape(1, 1, True, 1024)),
        (1, 1, True, 1025, StepShape(1, 1, True, 5000)),
        (3, 3, True, 80, StepShape(4, 4, True, 1024)),
        (260, 260, True, 80, StepShape(288, 288, True, 5000)),
        (128, 1, False, 80, StepShape(128, 32, False, 5000)),
        (129, 40, False, 80, StepShape(192, 128, False, 5000)),
        (2000, 3, False, 80, StepShape(2048, 32, False, 5000)),
    ],
)
def test_padding_is_small(
    num_tokens: int, num_rows: int, is_decode: bool, max_seq_len: int, shape: StepShape
) -> None:
    table = ShapeTable(MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN, 1024)
    assert table.shape_of(num_tokens, num_rows, is_decode=is_decode, max_seq_len=max_seq_len) == shape
