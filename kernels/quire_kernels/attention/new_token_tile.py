"""The new token of a decode step, in Gluon: normed, rotated and attended to in registers, written to the cache on the side.

Truth: `rotary/reference.py`, and of what comes of it `attention/reference.py`. The query heads that share a key head are
the first rows of a tile, that key head is the last: of 8 rows where they suffice, for rotating 16 takes twice as long. The
tile comes in two halves of the head dimension, which lie in a thread as the rotation pairs them and as a product wants them;
multiplied by itself it gives the scores of the new key. Knows nothing of the keys before it.
"""

# Gluon's types know neither its compile-time values nor its launches.
# pyright: reportAssignmentType=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

_HALF = gl.constexpr(64)


@gluon.constexpr_function
def rows_of_tile(group):
    """How many rows hold the query heads of a group and a key head."""
    return 8 if group < 8 else 16


@gluon.constexpr_function
def layout_of_half(rows):
    """Each half of a tile as left operands of products have it: pairs of elements, and rows eight apart, in a thread."""
    elements = [[0, 1], [0, 8], [0, 16], [0, 32]]
    return gl.DistributedLinearLayout(
        reg_bases=elements if rows == 8 else [*elements, [8, 0]],
        lane_bases=[[0, 2], [0, 4], [1, 0], [2, 0], [4, 0]],
        warp_bases=[],
        block_bases=[],
        shape=[rows, 64],
    )


@gluon.jit
def load_rotation(cos_sin_row, HALF: gl.constexpr):
    """The cosines and sines of one position, each for one half of the head dimension."""
    dim = gl.arange(0, _HALF, layout=gl.SliceLayout(0, HALF))
    return gl.load(cos_sin_row + dim), gl.load(cos_sin_row + _HALF + dim)


@gluon.jit
def load_rows(of_queries, of_key, query_stride, GROUP: gl.constexpr, ROWS: gl.constexpr, HALF: gl.constexpr):
    """A tile of heads, or of what goes with each head, in two halves; rows that belong to no head are zero."""
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, HALF))
    dim = gl.arange(0, _HALF, layout=gl.SliceLayout(0, HALF))[None, :]
    live = ((row < GROUP) | (row == ROWS - 1))[:, None]
    source = gl.where(row < GROUP, of_queries + row * query_stride, of_key + 0 * row)[:, None]
    return gl.load(source + dim, mask=live, other=0.0), gl.load(source + _HALF + dim, mask=live, other=0.0)


@gluon.jit
def rotate_rows(first, second, cos, sin, first_weight, second_weight, eps, HAS_NORM: gl.constexpr):
    """The same halves normed and rotated, rounded once, as those that `rotary` writes."""
    DTYPE: gl.constexpr = first.dtype
    first, second = first.to(gl.float32), second.to(gl.float32)
    if HAS_NORM:
        squares = gl.sum(first * first + second * second, axis=1)
        inverse_rms = gl.rsqrt(squares / (2 * _HALF) + eps)[:, None]
        first *= inverse_rms * first_weight.to(gl.float32)
        second *= inverse_rms * second_weight.to(gl.float32)
    cos, sin = cos[None, :], sin[None, :]
    return (first * cos - second * sin).to(DTYPE), (second * cos + first * sin).to(DTYPE)


@gluon.jit
def store_key(target, first, second, live, ROWS: gl.constexpr, HALF: gl.constexpr):
    """Write the key of a rotated tile to its place in the cache."""
    row = gl.arange(0, ROWS, layout=gl.SliceLayout(1, HALF))[:, None]
    dim = gl.arange(0, _HALF, layout=gl.SliceLayout(0, HALF))[None, :]
    mask = (row == ROWS - 1) & live
    gl.store(target + 0 * row + dim, first, mask=mask)
    gl.store(target + 0 * row + _HALF + dim, second, mask=mask)


@gluon.jit
def whole_rows(first, second, ROWS: gl.constexpr, LEFT: gl.constexpr):
    """The tile as ``[16, 128]``, left operand of a product; no element leaves its thread."""
    tile = gl.join(first, second).permute((0, 2, 1)).reshape((ROWS, 2 * _HALF))
    if ROWS == 8:
        tile = gl.join(tile, gl.zeros_like(tile)).permute((2, 0, 1)).reshape((16, 2 * _HALF))
    return gl.convert_layout(tile, LEFT)


@gluon.jit
def score_of_key(tile, ROWS: gl.constexpr, SCORES: gl.constexpr, RIGHT: gl.constexpr):
    """The product of every row with the key: what it adds to the score of the new token, before any scale."""
    turned = gl.convert_layout(tile.permute((1, 0)), RIGHT)
    products = mma_v2(tile, turned, gl.full([16, 16], 0.0, gl.float32, layout=SCORES))
    column = gl.arange(0, 16, layout=gl.SliceLayout(0, SCORES))[None, :]
    return gl.max(gl.where(column == ROWS - 1, products, -float("inf")), axis=1)
