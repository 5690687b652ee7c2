"""Triton rotary embedding over tiles of heads, fused with q/k norm and the write into the paged cache.

Truth: `rotary/reference.py`. A program rotates tiles of heads of one token or, where there are many, of several; others
copy those of v.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)
from quire_kernels.rotary.head_tile import (
    HEADS_OF_PROGRAM,
    checked_rotary_half,
    copy_heads,
    padded_rest,
    rotate_heads,
)

_TILES = 4
"""Of many tokens, such tiles that a program loads before it stores any."""
_MANY_TOKENS = 1024
"""On one H200, 32 query and 8 key heads, as few and as many: 512 tokens 4.4 and 4.6 us, 1,024 8.6 and 7.7, 8,192 61 and 53."""


# One kernel serves every number of tokens.
@triton.jit(do_not_specialize=["num_tokens"])
def _rotary_embedding_cache_kernel(
    q,
    k,
    v,
    q_out,
    k_cache,
    v_cache,
    cos_sin,
    positions,
    slot_mapping,
    q_norm_weight,
    k_norm_weight,
    num_tokens,
    eps,
    inverse_k_scale,
    inverse_v_scale,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    k_block_stride,
    k_slot_stride,
    k_cache_head_stride,
    v_block_stride,
    v_slot_stride,
    v_cache_head_stride,
    cos_sin_stride,
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    TILES: tl.constexpr,
    Q_PROGRAMS: tl.constexpr,
    K_PROGRAMS: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    LIMIT: tl.constexpr,  # largest value of an 8-bit cache; 0 for wider ones
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    row = tl.arange(0, TOKENS * HEADS)[:, None]
    token = tl.program_id(0).to(tl.int64) * TOKENS + row // HEADS
    there = token < num_tokens
    program = tl.program_id(1)
    # Where a token stands was known before the projection that makes its heads.
    if program < Q_PROGRAMS:
        position = tl.load(positions + token, mask=there, other=0)
        rotate_heads(
            q + token * q_token_stride,
            q_out + token * (NUM_HEADS * HEAD_DIM),
            q_norm_weight,
            cos_sin + position * cos_sin_stride,
            program * (HEADS * TILES) + row % HEADS,
            there,
            NUM_HEADS,
            q_head_stride,
            HEAD_DIM,
            eps,
            1.0,
            HEAD_DIM,
            ROTARY_HALF,
            HALF,
            REST,
            HEADS,
            TILES,
            HAS_NORM=HAS_Q_NORM,
            LIMIT=0,
            OVERLAP=OVERLAP,
        )
    else:
        slot = tl.load(slot_mapping + token, mask=there, other=0).to(tl.int64)
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        if program < Q_PROGRAMS + K_PROGRAMS:
            position = tl.load(positions + token, mask=there, other=0)
            rotate_heads(
                k + token * k_token_stride,
                k_cache + block * k_block_stride + offset * k_slot_stride,
                k_norm_weight,
                cos_sin + position * cos_sin_stride,
                (program - Q_PROGRAMS) * (HEADS * TILES) + row % HEADS,
                there,
                NUM_KV_HEADS,
                k_head_stride,
                k_cache_head_stride,
                eps,
                inverse_k_scale,
                HEAD_DIM,
                ROTARY_HALF,
                HALF,
                REST,
                HEADS,
                TILES,
                HAS_NORM=HAS_K_NORM,
                LIMIT=LIMIT,
                OVERLAP=OVERLAP,
            )
        else:
            wait_for_inputs(OVERLAP)
            copy_heads(
                v + token * v_token_stride,
                v_cache + block * v_block_stride + offset * v_slot_stride,
                (program - Q_PROGRAMS - K_PROGRAMS) * (HEADS * TILES) + row % HEADS,
                there,
                NUM_KV_HEADS,
                v_head_stride,
                v_cache_head_stride,
                inverse_v_scale,
                HEAD_DIM,
                WIDTH,
                HEADS,
                TILES,
                LIMIT,
            )


def rotary_embedding_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Norm, rotate and cache one step's q, k and v in one launch; returns the new q, contiguous ``[T, Hq,
    D]``.

    q, k and v may be slices of one fused projection; q, or k and v with their caches, may be of no head. Raises
    ``ValueError`` on unfit shapes or strides.

    An ordinary launch, one that starts when all before it have ended, must lie between whatever wrote ``positions`` and
    ``slot_mapping`` and this one, which reads them before the launch that makes q, k and v has ended.
    """
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    half = checked_rotary_half(q, cos_sin)
    _check_cache("k", k, k_cache, head_dim)
    _check_cache("v", v, v_cache, head_dim)
    q_out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0 or num_heads + num_kv_heads == 0:
        return q_out
    heads_of_row = next_power_of_2(num_kv_heads or num_heads)
    tokens, heads, tiles = 1, min(HEADS_OF_PROGRAM, heads_of_row), 1
    if num_tokens >= _MANY_TOKENS:
        tokens, heads, tiles = HEADS_OF_PROGRAM, 1, min(_TILES, heads_of_row)
    q_programs, k_programs = (cdiv(each, heads * tiles) for each in (num_heads, num_kv_heads))
    overlap = overlaps_launches(q.device)
    _rotary_embedding_cache_kernel[(cdiv(num_tokens, tokens), q_programs + 2 * k_programs)](
        q,
        k,
        v,
        q_out,
        k_cache,
        v_cache,
        cos_sin,
        positions,
        slot_mapping,
        q if q_norm_weight is None else q_norm_weight,
        k if k_norm_weight is None else k_norm_weight,
        num_tokens,
        eps,
        1.0 / k_scale,
        1.0 / v_scale,
        *q.stride()[:2],
        *k.stride()[:2],
        *v.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        cos_sin.stride(0),
        BLOCK_SIZE=k_cache.shape[1],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        ROTARY_HALF=half,
        HALF=next_power_of_2(half),
        REST=padded_rest(head_dim, half),
        WIDTH=next_power_of_2(head_dim),
        TOKENS=tokens,
        HEADS=heads,
        TILES=tiles,
        Q_PROGRAMS=q_programs,
        K_PROGRAMS=k_programs,
        HAS_Q_NORM=q_norm_weight is not None,
        HAS_K_NORM=k_norm_weight is not None,
        LIMIT=torch.finfo(k_cache.dtype).max if k_cache.element_size() == 1 else 0,
        OVERLAP=overlap,
        num_warps=2,
        **launch_options(overlap),
    )
    return q_out


def _check_cache(name: str, rows: Tensor, cache: Tensor, head_dim: int) -> None:
    if rows.shape[1:] != cache.shape[2:] or cache.shape[3] != head_dim:
        raise ValueError(
            f"{name} has heads of shape {tuple(rows.shape[1:])}; its cache holds {tuple(cache.shape[2:])}"
        )
    if rows.stride(2) != 1 or cache.stride(3) != 1:
        raise ValueError(f"the elements of one head of {name} and of its cache must be contiguous")
