"""Softmax of a warpgroup's rows over one tile of scores after another, in the layouts of its products.

What a row subtracts from its scores is its *reference*. Any will do that is not far below the highest score: weights and
their total are floats, and one is divided by the other in the end. Scores, references and exponents are powers of two. Knows
no cache, no ring and no item.
"""

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl

from quire_kernels.attention.hopper_warpgroup import WARPGROUP_ROWS

_ROWS = gl.constexpr(WARPGROUP_ROWS)
# The reference of a row that has seen no key: finite, so that infinity is never subtracted from infinity, and below any score.
LOWEST = gl.constexpr(-3.4e38)


@gluon.jit
def hide(scores, position, start, WINDOW: gl.constexpr):
    """Lower to minus infinity the scores of keys, from ``start`` on, that come after a row's position or before its window."""
    LAYOUT: gl.constexpr = scores.type.layout
    key = start + gl.arange(0, scores.shape[1], gl.SliceLayout(0, LAYOUT))
    visible = key[None, :] <= position[:, None]
    if WINDOW > 0:
        visible = visible & (key[None, :] > position[:, None] - WINDOW)
    return gl.where(visible, scores, -float("inf"))


@gluon.jit
def raise_reference(reference, scores, scale):
    """Return the highest of the references and the scores of their rows."""
    return gl.maximum(reference, gl.max(scores, 1) * scale)


@gluon.jit
def weigh(scores, scale, reference):
    """Return 2^(scores * scale - reference)."""
    return gl.exp2(gl.fma(scores, scale, -reference[:, None]))


@gluon.jit
def sum_by_thread(weights):
    """What each of the four threads that share a row has of its sum: they add theirs when the item ends."""
    pairs = weights.reshape([_ROWS, weights.shape[1] // 8, 4, 2])
    return gl.sum(gl.sum(pairs, 3), 1)


@gluon.jit
def rescale_rows(numbers, factor):
    """Multiply what rows have, whatever its columns, by a factor of each row."""
    return numbers * gl.convert_layout(factor, gl.SliceLayout(1, numbers.type.layout))[:, None]


@gluon.jit
def as_operand(weights, dtype: gl.constexpr):
    """Return weights as a warpgroup multiplies them with values."""
    return gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, weights.type.layout, 2))
