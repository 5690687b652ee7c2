"""Triton kernel that bars tokens from rows of logits, by one bit per token. Truth: `reference.apply_token_bitmask`.

Only what is barred is written: of a mask that bars little, little memory moves.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv

_TILE = 4096  # tokens per program


@triton.jit
def _apply_token_bitmask_kernel(
    logits, rows, bitmask, vocab_size, num_words, row_stride, bitmask_stride, TILE: tl.constexpr
):
    index = tl.program_id(0)
    token = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = token < vocab_size
    word = token // 32
    words = bitmask + index.to(tl.int64) * bitmask_stride + word
    bits = tl.load(words, mask=inside & (word < num_words), other=0)
    barred = inside & (((bits >> (token % 32)) & 1) == 0)
    row = tl.load(rows + index).to(tl.int64)
    tl.store(logits + row * row_stride + token, -float("inf"), mask=barred)


def apply_token_bitmask(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """See `reference.apply_token_bitmask`. One launch, of a size that the shapes give.

    Raises ``ValueError`` when rows of either tensor are not contiguous or the tensors do not match.
    """
    if rows.shape[0] != bitmask.shape[0]:
        raise ValueError(f"bitmask has {bitmask.shape[0]} rows; {rows.shape[0]} are named")
    if logits.stride(1) != 1 or bitmask.stride(1) != 1:
        raise ValueError("rows of logits and of bitmask must be contiguous")
    if rows.shape[0] == 0:
        return
    vocab_size = logits.shape[1]
    _apply_token_bitmask_kernel[(rows.shape[0], cdiv(vocab_size, _TILE))](
        logits,
        rows,
        bitmask,
        vocab_size,
        bitmask.shape[1],
        logits.stride(0),
        bitmask.stride(0),
        TILE=_TILE,
        num_warps=8,
    )
