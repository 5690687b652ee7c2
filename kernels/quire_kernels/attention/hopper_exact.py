"""What a warpgroup of `prefill_hopper.py` does where scores have outgrown what was subtracted from them: the item again.

A few keys at a time, by plain loads, with a reference that follows the highest score: slow, and right whatever the scores.
Rings, other warps and the other warpgroup know nothing of it.
"""

# pyright: reportOperatorIssue=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from quire_kernels.attention.hopper_softmax import (
    LOWEST,
    as_operand,
    hide,
    raise_reference,
    rescale_rows,
    sum_by_thread,
    weigh,
)
from quire_kernels.attention.hopper_warpgroup import WARPGROUP_ROWS, page_layout, product_layout, synchronize

EXACT_KEYS = 16
"""Keys at a time: every page holds a multiple of them."""

_ROWS = gl.constexpr(WARPGROUP_ROWS)
_KEYS = gl.constexpr(EXACT_KEYS)
# Totals up to here have lost nothing, and times values below 2^62 overflow nothing.
_MOST = gl.constexpr(2.0**64)


@gluon.jit
def has_outgrown(total, num_queries, HALF: gl.constexpr, GROUP: gl.constexpr, TOKEN_ROWS: gl.constexpr):
    """Whether the weights of any row that exists are too large, or no numbers."""
    row = HALF * _ROWS + gl.arange(0, _ROWS, gl.SliceLayout(1, total.type.layout))
    exists = (row % TOKEN_ROWS < GROUP) & (row // TOKEN_ROWS < num_queries)
    has = exists[:, None] & ((total < _MOST) == 0)
    # One number of each warp, then all four in every thread: one round through shared memory, where `max` of all takes two.
    of_warps = gl.max(has.to(gl.int32).reshape([4, _ROWS]), 1)
    return gl.max(gl.convert_layout(of_warps, gl.BlockedLayout([4], [32], [4], [0])), 0) > 0


@gluon.jit
def attend_exactly(
    queries, position, scale, caches, tables, kv_head, sequence, begin, end, room,
    HEAD_DIM: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Return result, reference and total by thread of the rows over the keys from ``begin`` to ``end``.

    ``caches`` are those of keys and of values, each with its strides (block, slot, head); ``tables`` are the block tables and
    their stride. ``room`` is shared memory for a few keys.
    """
    SCORES: gl.constexpr = product_layout(_KEYS)
    key_cache, value_cache = caches
    block_tables, block_table_stride = tables
    table_row = block_tables + sequence.to(gl.int64) * block_table_stride
    row_position = gl.convert_layout(position, gl.SliceLayout(1, SCORES))
    zeros = gl.zeros([_ROWS, _KEYS], gl.float32, SCORES)
    accumulated = gl.zeros([_ROWS, HEAD_DIM], gl.float32, product_layout(HEAD_DIM))
    reference = gl.full([_ROWS], LOWEST, gl.float32, gl.SliceLayout(1, SCORES))
    total = sum_by_thread(zeros)
    for start in range(begin, end, _KEYS):
        block = gl.load(table_row + start // BLOCK_SIZE)
        _fill(room, key_cache, block, start % BLOCK_SIZE, end - start, kv_head)
        scores = warpgroup_mma(queries, room.permute((1, 0)), zeros, use_acc=False, is_async=True)
        scores = warpgroup_mma_wait(0, deps=[scores])
        scores = hide(scores, row_position, start, 0)
        higher = raise_reference(reference, scores, scale)
        rescale = gl.exp2(reference - higher)
        reference = higher
        weights = weigh(scores, scale, reference)
        total = rescale_rows(total, rescale) + sum_by_thread(weights)
        _fill(room, value_cache, block, start % BLOCK_SIZE, end - start, kv_head)
        accumulated = rescale_rows(accumulated, rescale)
        operand = as_operand(weights, room.dtype)
        accumulated = warpgroup_mma(operand, room, accumulated, is_async=True)
        accumulated, operand = warpgroup_mma_wait(0, deps=[accumulated, operand])
    return accumulated, reference, total


@gluon.jit
def _fill(room, cache, block, slot, num_left, kv_head):
    """Copy some slots of a block to shared memory, zeros for those past the end, once nobody reads what was there."""
    HEAD_DIM: gl.constexpr = room.shape[1]
    LAYOUT: gl.constexpr = page_layout(HEAD_DIM)
    pointer, block_stride, slot_stride, head_stride = cache
    row = gl.arange(0, _KEYS, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LAYOUT))
    place = (slot + row)[:, None] * slot_stride + (kv_head * head_stride + dim)[None, :]
    rows = gl.load(
        pointer + block.to(gl.int64) * block_stride + place, mask=(row < num_left)[:, None], other=0.0
    )
    synchronize()
    room.store(rows)
    fence_async_shared()
    synchronize()
