"""What a program of the rotary kernels does with a tile of heads: rotates it, normed first if asked for, or copies it.

Tiles are rows of heads: of one token or, where there are many, of several.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import next_power_of_2
from quire_kernels.overlap import wait_for_inputs

HEADS_OF_PROGRAM = 8
"""Heads that a program turns at a time: of one token, or one of each of so many tokens, which spares it cosines and sines."""


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
def rotate_heads(
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
    """Turn so many tiles of heads, all of which are loaded before the first is stored."""
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
def copy_heads(
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
    """Copy so many tiles of heads, all of which are loaded before the first is stored."""
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


def padded_rest(head_dim: int, half: int) -> int:
    """A power of two that holds what is left of a head behind both halves; 0 where nothing is."""
    return next_power_of_2(head_dim - 2 * half) if head_dim > 2 * half else 0


def checked_rotary_half(x: Tensor, cos_sin: Tensor) -> int:
    """Elements of a half that turns. Raises ``ValueError`` where ``x [T, H, D]`` and ``cos_sin`` do not go together."""
    rotary_dim = cos_sin.shape[1]
    if rotary_dim % 2 or not 2 <= rotary_dim <= x.shape[2]:
        raise ValueError(f"rotary_dim is {rotary_dim}; it must be even and from 2 to head_dim {x.shape[2]}")
    if cos_sin.dtype != torch.float32 or cos_sin.stride(1) != 1:
        raise ValueError(f"cos_sin is {cos_sin.dtype}; it must be float32 with contiguous rows")
    if x.stride(2) != 1:
        raise ValueError("the elements of one head must be contiguous")
    return rotary_dim // 2
