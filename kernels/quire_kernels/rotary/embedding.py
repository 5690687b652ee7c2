"""Triton rotary embedding by itself, without norms and cache. Truth: `rotary/reference.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.rotary.head_tile import HEADS_OF_PROGRAM, checked_rotary_half, padded_rest, rotate_heads


@triton.jit
def _rotary_embedding_heads_kernel(
    x,
    out,
    cos_sin,
    positions,
    num_heads,
    x_token_stride,
    x_head_stride,
    cos_sin_stride,
    HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, HEADS)[:, None]
    # All rows are of one token: each has the same places, added up to its shape.
    rotate_heads(
        x + token * x_token_stride + 0 * row,
        out + token * num_heads * HEAD_DIM + 0 * row,
        x,
        cos_sin + tl.load(positions + token) * cos_sin_stride + 0 * row,
        tl.program_id(1) * HEADS + row,
        row >= 0,
        num_heads,
        x_head_stride,
        HEAD_DIM,
        0.0,
        1.0,
        HEAD_DIM,
        ROTARY_HALF,
        HALF,
        REST,
        HEADS,
        TILES=1,
        HAS_NORM=False,
        LIMIT=0,
        OVERLAP=False,
    )


def rotary_embedding_heads(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated copies of ``q [T, Hq, D]`` and ``k [T, Hkv, D]``; raises ``ValueError`` on unfit
    shapes.
    """
    return _rotate_one(q, cos_sin, positions), _rotate_one(k, cos_sin, positions)


def _rotate_one(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    num_tokens, num_heads, head_dim = x.shape
    half = checked_rotary_half(x, cos_sin)
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    heads = min(HEADS_OF_PROGRAM, next_power_of_2(num_heads))
    _rotary_embedding_heads_kernel[(num_tokens, cdiv(num_heads, heads))](
        x,
        out,
        cos_sin,
        positions,
        num_heads,
        x.stride(0),
        x.stride(1),
        cos_sin.stride(0),
        HEAD_DIM=head_dim,
        ROTARY_HALF=half,
        HALF=next_power_of_2(half),
        REST=padded_rest(head_dim, half),
        HEADS=heads,
        num_warps=2,
    )
    return out
