"""Triton rotary embedding over tiles of heads, fused with q/k norm and the write into the paged cache.

Truth: `rotary/reference.py`. A program rotates tiles of heads of one token or, where there are many, of several; others
copy those of v.
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

_ROWS = 8
"""Heads that a program turns at a time: of one token, or one of each of so many tokens, which spares it cosines and sines."""
_TILES = 4
"""Of many tokens, such tiles that a program loads before it stores any."""
_MANY_TOKENS = 1024
"""On one H200, 32 query and 8 key heads, as few and as many: 512 tokens 4.4 and 4.6 us, 1,024 8.6 and 7.7, 8,192 61 and 53."""


@triton.jit
def _load_heads(
    heads,  # [ROWS, 1]: where they begin
    there,  # [ROWS, 1]
    HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
):
    """Return the halves that turn, and what is left of each head."""
    element = tl.arange(0, HALF)[None, :]
    inside = there & (element < ROTARY_HALF)
    first = tl.load(heads + element, mask=inside, other=0.0)
    second = tl.load(heads + ROTARY_HALF + element, mask=inside, other=0.0)
    rest = first
    if REST > 0:
        tail = 2 * ROTARY_HALF + tl.arange(0, REST)[None, :]
        rest = tl.load(heads + tail, mask=there & (tail < HEAD_DIM), other=0.0)
    return first, second, rest


@triton.jit
def _rotate_heads(
    source,  # [ROWS, 1]: the first head of each row's token
    target,
    weight,
    cos_sin_row,  # [ROWS, 1]
    head,  # [ROWS, 1]: of the first tile
    there,  # [ROWS, 1]: whether the row has a token
    num_heads,
    source_head_stride,
    target_head_stride,
    eps,
    inverse_scale,
    HEAD_DIM: tl.constexpr,
    ROTARY_HALF: tl.constexpr,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    HEADS: tl.constexpr,
    TILES: tl.constexpr,
    HAS_NORM: tl.constexpr,
    LIMIT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    ROWS: tl.constexpr = head.shape[0]
    element = tl.arange(0, HALF)[None, :]
    in_half = element < ROTARY_HALF
    # One value for each of the head's, though rows share them: the same threads then hold both.
    cos = tl.load(cos_sin_row + element, mask=there & in_half, other=0.0)
    sin = tl.load(cos_sin_row + ROTARY_HALF + element, mask=there & in_half, other=0.0)
    if HAS_NORM:
        weights = tl.broadcast_to(weight + element, (ROWS, HALF))
        first_weight = tl.load(weights, mask=there & in_half, other=0.0).to(tl.float32)
        second_weight = tl.load(weights + ROTARY_HALF, mask=there & in_half, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    loaded = ()
    for tile in tl.static_range(TILES):
        at = head + tile * HEADS
        loaded = loaded + (  # noqa: RUF005
            _load_heads(
                source + at * source_head_stride, there & (at < num_heads), HEAD_DIM, ROTARY_HALF, HALF, REST
            ),
        )
    for tile in tl.static_range(TILES):
        at = head + tile * HEADS
        exists = there & (at < num_heads)
        write = target + at * target_head_stride
        first, second = loaded[tile][0].to(tl.float32), loaded[tile][1].to(tl.float32)
        if HAS_NORM:
            squares = tl.sum(first * first + second * second, axis=1)
            if REST > 0:
                beyond = loaded[tile][2].to(tl.float32)
                squares += tl.sum(beyond * beyond, axis=1)
            inverse_rms = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
            first *= inverse_rms * first_weight
            second *= inverse_rms * second_weight
        dtype = target.dtype.element_ty
        rotated_first = _within((first * cos - second * sin) * inverse_scale, LIMIT)
        rotated_second = _within((second * cos + first * sin) * inverse_scale, LIMIT)
        tl.store(write + element, rotated_first.to(dtype), mask=exists & in_half)
        tl.store(write + ROTARY_HALF + element, rotated_second.to(dtype), mask=exists & in_half)
        if REST > 0:
            tail = 2 * ROTARY_HALF + tl.arange(0, REST)[None, :]
            rest = loaded[tile][2].to(tl.float32)
            if HAS_NORM:
                rest *= inverse_rms * tl.load(weight + tail, mask=tail < HEAD_DIM, other=0.0).to(tl.float32)
            rest = _within(rest * inverse_scale, LIMIT)
            tl.store(write + tail, rest.to(dtype), mask=exists & (tail < HEAD_DIM))


@triton.jit
def _copy_heads(
    source,  # [ROWS, 1]: the first head of each row's token
    target,
    head,  # [ROWS, 1]: of the first tile
    there,
    num_heads,
    source_head_stride,
    target_head_stride,
    inverse_scale,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    TILES: tl.constexpr,
    LIMIT: tl.constexpr,
):
    element = tl.arange(0, WIDTH)[None, :]
    inside = there & (element < HEAD_DIM)
    loaded = ()
    for tile in tl.static_range(TILES):
        at = head + tile * HEADS
        place = source + at * source_head_stride + element
        loaded = loaded + (tl.load(place, mask=inside & (at < num_heads), other=0.0),)  # noqa: RUF005
    for tile in tl.static_range(TILES):
        at = head + tile * HEADS
        values = _within(loaded[tile].to(tl.float32) * inverse_scale, LIMIT)
        place = target + at * target_head_stride + element
        tl.store(place, values.to(target.dtype.element_ty), mask=inside & (at < num_heads))


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
    row = tl.arange(0, HEADS)[:, None]
    # All rows are of one token: each has the same places, added up to its shape.
    _rotate_heads(
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
        _rotate_heads(
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
            _rotate_heads(
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
            _copy_heads(
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

    q, k and v may be slices of one fused projection; q, or k and v with their caches, may be of no head. Raises
    ``ValueError`` on unfit shapes or strides.

    An ordinary launch, one that starts when all before it have ended, must lie between whatever wrote ``positions`` and
    ``slot_mapping`` and this one, which reads them before the launch that makes q, k and v has ended.
    """
    (num_tokens, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    half = _checked_rotary_half(q, cos_sin)
    _check_cache("k", k, k_cache, head_dim)
    _check_cache("v", v, v_cache, head_dim)
    q_out = torch.empty((num_tokens, num_heads, head_dim), dtype=q.dtype, device=q.device)
    if num_tokens == 0 or num_heads + num_kv_heads == 0:
        return q_out
    heads_of_row = triton.next_power_of_2(num_kv_heads or num_heads)
    tokens, heads, tiles = 1, min(_ROWS, heads_of_row), 1
    if num_tokens >= _MANY_TOKENS:
        tokens, heads, tiles = _ROWS, 1, min(_TILES, heads_of_row)
    q_programs, k_programs = (triton.cdiv(each, heads * tiles) for each in (num_heads, num_kv_heads))
    overlap = overlaps_launches(q.device)
    _rotary_embedding_cache_kernel[(triton.cdiv(num_tokens, tokens), q_programs + 2 * k_programs)](
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
        HALF=triton.next_power_of_2(half),
        REST=_padded_rest(head_dim, half),
        WIDTH=triton.next_power_of_2(head_dim),
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


def _rotate_one(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    num_tokens, num_heads, head_dim = x.shape
    half = _checked_rotary_half(x, cos_sin)
    out = torch.empty((num_tokens, num_heads, head_dim), dtype=x.dtype, device=x.device)
    if num_tokens == 0:
        return out
    heads = min(_ROWS, triton.next_power_of_2(num_heads))
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
