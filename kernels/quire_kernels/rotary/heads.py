"""Triton rotary embedding over tiles of heads, fused with q/k norm and the write into the paged cache.

Truth: `rotary/reference.py`. One program rotates a tile of heads of one token; the tiles of k also carry
those of v.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

_HEADS_PER_PROGRAM = 8


@triton.jit
def _rotate_heads(
    source,  # the first head of one token
    target,
    weight,
    head,  # [HEADS, 1]
    num_heads,
    source_head_stride,
    target_head_stride,
    cos_sin_row,
    eps,
    inverse_scale,
    HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HAS_NORM: tl.constexpr,
    LIMIT: tl.constexpr,
):
    element = tl.arange(0, HALF)[None, :]
    in_half = element < ROTARY_HALF
    inside = (head < num_heads) & in_half
    read, write = source + head * source_head_stride, target + head * target_head_stride
    first = tl.load(read + element, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(read + ROTARY_HALF + element, mask=inside, other=0.0).to(tl.float32)
    cos = tl.load(cos_sin_row + element, mask=in_half, other=0.0)
    sin = tl.load(cos_sin_row + ROTARY_HALF + element, mask=in_half, other=0.0)
    inverse_rms = 1.0
    if HAS_NORM:
        squares = tl.sum(first * first + second * second, axis=1)
        if REST > 0:
            passed = 2 * ROTARY_HALF + tl.arange(0, REST)[None, :]
            beyond = tl.load(read + passed, mask=(head < num_heads) & (passed < HEAD_DIM), other=0.0).to(
                tl.float32
            )
            squares += tl.sum(beyond * beyond, axis=1)
        inverse_rms = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
        first *= inverse_rms * tl.load(weight + element, mask=in_half, other=0.0).to(tl.float32)
        second *= inverse_rms * tl.load(weight + ROTARY_HALF + element, mask=in_half, other=0.0).to(
            tl.float32
        )
    dtype = target.dtype.element_ty
    rotated_first = _within((first * cos - second * sin) * inverse_scale, LIMIT)
    rotated_second = _within((second * cos + first * sin) * inverse_scale, LIMIT)
    tl.store(write + element, rotated_first.to(dtype), mask=inside)
    tl.store(write + ROTARY_HALF + element, rotated_second.to(dtype), mask=inside)
    if REST > 0:
        tail = 2 * ROTARY_HALF + tl.arange(0, REST)[None, :]
        in_tail = (head < num_heads) & (tail < HEAD_DIM)
        rest = tl.load(read + tail, mask=in_tail, other=0.0).to(tl.float32)
        if HAS_NORM:
            rest *= inverse_rms * tl.load(weight + tail, mask=tail < HEAD_DIM, other=0.0).to(tl.float32)
        tl.store(write + tail, _within(rest * inverse_scale, LIMIT).to(dtype), mask=in_tail)


@triton.jit
def _within(values, LIMIT: tl.constexpr):
    """Bound values that go into an 8-bit type, which would turn larger ones into no number."""
    if LIMIT > 0:
        values = tl.minimum(tl.maximum(values, -LIMIT), LIMIT)
    return values


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
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)[:, None]
    cos_sin_row = cos_sin + tl.load(positions + token) * cos_sin_stride
    target = out + token * num_heads * HEAD_DIM
    _rotate_heads(
        x + token * x_token_stride,
        target,
        x,
        head,
        num_heads,
        x_head_stride,
        HEAD_DIM,
        cos_sin_row,
        0.0,
        1.0,
        HEAD_DIM,
        ROTARY_HALF,
        HALF,
        REST,
        HAS_NORM=False,
        LIMIT=0,
    )


@triton.jit
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
    HEADS: tl.constexpr,
    Q_TILES: tl.constexpr,
    HAS_Q_NORM: tl.constexpr,
    HAS_K_NORM: tl.constexpr,
    LIMIT: tl.constexpr,  # largest value of an 8-bit cache; 0 for wider ones
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    # Where a token stands was known before the projection that makes its heads.
    cos_sin_row = cos_sin + tl.load(positions + token) * cos_sin_stride
    slot = tl.load(slot_mapping + token).to(tl.int64)
    wait_for_inputs(OVERLAP)
    if tile < Q_TILES:
        head = tile * HEADS + tl.arange(0, HEADS)[:, None]
        _rotate_heads(
            q + token * q_token_stride,
            q_out + token * NUM_HEADS * HEAD_DIM,
            q_norm_weight,
            head,
            NUM_HEADS,
            q_head_stride,
            HEAD_DIM,
            cos_sin_row,
            eps,
            1.0,
            HEAD_DIM,
            ROTARY_HALF,
            HALF,
            REST,
            HAS_NORM=HAS_Q_NORM,
            LIMIT=0,
        )
    else:
        head = (tile - Q_TILES) * HEADS + tl.arange(0, HEADS)[:, None]
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        _rotate_heads(
            k + token * k_token_stride,
            k_cache + block * k_block_stride + offset * k_slot_stride,
            k_norm_weight,
            head,
            NUM_KV_HEADS,
            k_head_stride,
            k_cache_head_stride,
            cos_sin_row,
            eps,
            inverse_k_scale,
            HEAD_DIM,
            ROTARY_HALF,
            HALF,
            REST,
            HAS_NORM=HAS_K_NORM,
            LIMIT=LIMIT,
        )
        element = tl.arange(0, WIDTH)[None, :]
        inside = (head < NUM_KV_HEADS) & (element < HEAD_DIM)
        value = tl.load(v + token * v_token_stride + head * v_head_stride + element, mask=inside, other=0.0)
        target = (
            v_cache + block * v_block_stride + offset * v_slot_stride + head * v_cache_head_stride + element
        )
        value = _within(value.to(tl.float32) * inverse_v_scale, LIMIT)
        tl.store(target, value.to(v_cache.dtype.element_ty), mask=inside)


def rotary_embedding_heads(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return rotated copies of ``q [T, Hq, D]`` and ``k [T, Hkv, D]``; raises ``ValueError`` on unfit
    shapes.
    """
    return _rotate_one(q, cos_sin, positions), _rotate_one(k, cos_sin, positions)


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

    q, k and v may be slices of one fused projection. Raises ``ValueError`` on unfit shapes or strides.
    """
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    half = _checked_rotary_half(q, cos_sin)
    _check_cache("k", k, k_cache, head_dim)
    _check_cache("v", v, v_cache, head_dim)
    q_out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0:
        return q_out
    heads = min(_HEADS_PER_PROGRAM, triton.next_power_of_2(num_kv_heads))
    q_tiles, kv_tiles = triton.cdiv(num_heads, heads), triton.cdiv(num_kv_heads, heads)
    overlap = overlaps_launches(q.device)
    _rotary_embedding_cache_kernel[(num_tokens, q_tiles + kv_tiles)](
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
        HALF=triton.next_power_of_2(half),
        REST=_padded_rest(head_dim, half),
        WIDTH=triton.next_power_of_2(head_dim),
        HEADS=heads,
        Q_TILES=q_tiles,
        HAS_Q_NORM=q_norm_weight is not None,
        HAS_K_NORM=k_norm_weight is not None,
        LIMIT=torch.finfo(k_cache.dtype).max if k_cache.element_size() == 1 else 0,
        OVERLAP=overlap,
        num_warps=2,
        **launch_options(overlap),
    )
    return q_out


def _rotate_one(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    num_tokens, num_heads, head_dim = x.shape
    half = _checked_rotary_half(x, cos_sin)
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    heads = min(_HEADS_PER_PROGRAM, triton.next_power_of_2(num_heads))
    _rotary_embedding_heads_kernel[(num_tokens, triton.cdiv(num_heads, heads))](
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
        HALF=triton.next_power_of_2(half),
        REST=_padded_rest(head_dim, half),
        HEADS=heads,
        num_warps=2,
    )
    return out


def _padded_rest(head_dim: int, half: int) -> int:
    return triton.next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0


def _checked_rotary_half(x: Tensor, cos_sin: Tensor) -> int:
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 or not 2 <= rotary_dim <= x.shape[2]:
        raise ValueError(f"rotary_dim is {rotary_dim}; it must be even and from 2 to head_dim {x.shape[2]}")
    if cos_sin.dtype != torch.float32 or cos_sin.stride(1) != 1:
        raise ValueError(f"cos_sin is {cos_sin.dtype}; it must be float32 with contiguous rows")
    if x.stride(2) != 1:
        raise ValueError("the elements of one head must be contiguous")
    return rotary_dim // 2


def _check_cache(name: str, rows: Tensor, cache: Tensor, head_dim: int) -> None:
    if rows.shape[1:] != cache.shape[2:] or cache.shape[3] != head_dim:
        raise ValueError(
            f"{name} has heads of shape {tuple(rows.shape[1:])}; its cache holds {tuple(cache.shape[2:])}"
        )
    if rows.stride(2) != 1 or cache.stride(3) != 1:
        raise ValueError(f"the elements of one head of {name} and of its cache must be contiguous")
