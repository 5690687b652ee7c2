"""Barring tokens by bits: the kernel against its reference, and the reference against a plain loop."""

import pytest
import torch
from quire_kernels.sampling.reference import apply_token_bitmask
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.sampling.bitmask import apply_token_bitmask as apply_token_bitmask_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(1, 1, 1), (3, 31, 1), (3, 33, 2), (5, 4096, 3), (4, 9001, 4)]


def make_case(
    num_rows: int, vocab_size: int, num_masked: int, num_words: int
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(num_rows, vocab_size + 7, generator=generator).to(DEVICE)[:, :vocab_size]
    rows = torch.randperm(num_rows, generator=generator)[:num_masked].int().to(DEVICE)
    bitmask = torch.randint(-(2**31), 2**31, (num_masked, num_words), generator=generator).int().to(DEVICE)
    return logits, rows, bitmask


@pytest.mark.parametrize(("num_rows", "vocab_size", "num_masked"), SHAPES)
@pytest.mark.parametrize("missing_words", [0, 1])
def test_the_kernel_bars_what_the_reference_bars(
    num_rows: int, vocab_size: int, num_masked: int, missing_words: int
) -> None:
    num_words = -(-vocab_size // 32) - missing_words
    logits, rows, bitmask = make_case(num_rows, vocab_size, num_masked, num_words)
    expected = logits.clone()
    apply_token_bitmask(expected, rows, bitmask)
    apply_token_bitmask_kernel(logits, rows, bitmask)
    assert torch.equal(logits, expected)


def test_the_reference_bars_exactly_the_zero_bits_of_the_named_rows() -> None:
    logits, rows, bitmask = make_case(4, 70, 2, 2)
    before = logits.tolist()
    apply_token_bitmask(logits, rows, bitmask)
    mask_of = dict(zip(rows.tolist(), bitmask.tolist(), strict=True))
    for row, values in enumerate(logits.tolist()):
        for token, value in enumerate(values):
            words = mask_of.get(row)
            allowed = words is None or (token < 64 and (words[token // 32] >> (token % 32)) & 1)
            assert value == (before[row][token] if allowed else float("-inf")), (row, token)


def test_masks_that_do_not_match_their_rows_are_refused() -> None:
    logits, rows, bitmask = make_case(4, 70, 2, 3)
    with pytest.raises(ValueError, match="bitmask has 2 rows; 1 are named"):
        apply_token_bitmask_kernel(logits, rows[:1], bitmask)
