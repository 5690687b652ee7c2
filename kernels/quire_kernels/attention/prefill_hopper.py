"""Paged attention for sequences with several query tokens on Hopper: copies, products and softmax overlap by hand.

Truth: `attention/reference.py`. The work is that of `prefill.py`, by the same schedule; only its pace differs. Three warps
feed (`hopper_feed.py`) and two warpgroups attend (`hopper_attend.py`; `hopper_exact.py` where scores are out of range).
Programs stay on their multiprocessor and take items until none is left, so that the first tiles of an item are copied and
multiplied while the one before it ends.

Knows Hopper alone, 16-bit tensors, and pages that fill tiles (`can_attend`). Gluon is an experiment of Triton's: whoever
imports this module must be ready for an ImportError or AttributeError.
"""

# pyright: reportIndexIssue=false

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents

from quire_kernels.attention.hopper_attend import attend
from quire_kernels.attention.hopper_exact import EXACT_KEYS
from quire_kernels.attention.hopper_feed import NOTE_LEN, NOTE_READERS, copy_tiles, hand_out_items
from quire_kernels.attention.hopper_warpgroup import WARPGROUP_ROWS
from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.attention.tuning import PrefillConfig
from quire_kernels.box_descriptor import describe_boxes
from quire_kernels.overlap import launch_options, overlaps_launches

_LOG2_E = 1.4426950408889634
_Q_STAGES, _NOTES = 2, 2  # stages of these rings
_HALF = gl.constexpr(WARPGROUP_ROWS)
_EXACT_KEYS = gl.constexpr(EXACT_KEYS)
_NOTE_LEN = gl.constexpr(NOTE_LEN)


@gluon.jit
def _allocate_barriers(STAGES: gl.constexpr, ARRIVALS: gl.constexpr):
    """Return a barrier for each stage of a ring, which waits for so many to arrive."""
    barriers = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(barriers.index(stage), count=ARRIVALS)
    return barriers


@gluon.jit
def _paged_attention_prefill_hopper_kernel(
    q_pages,  # descriptors: queries [T, Hq, D] in boxes of half an item; keys and values, [rows, columns], in pages
    k_pages,
    v_pages,
    k_cache,  # the same by address, for `hopper_exact.py` alone
    v_cache,
    out,  # [T, Hq, D]
    part_out,  # [parts, Hkv, 128, D] float32
    part_lse,  # [parts, Hkv, 128] float32, base 2
    arrivals,  # [parts, Hkv, 2]
    taken,  # [2]
    block_tables,
    items,  # [items, 8]
    score_scale,  # scale * log2(e), positive
    value_scale,
    block_table_stride,
    k_rows_per_block,
    v_rows_per_block,
    k_slot_stride,
    v_slot_stride,
    k_head_stride,
    v_head_stride,
    SLIDING_WINDOW: gl.constexpr,  # 0: none
    BLOCK_SIZE: gl.constexpr,
    PAGE: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    BLOCK_Q: gl.constexpr,
    TILE: gl.constexpr,
    STAGES: gl.constexpr,
    Q_STAGES: gl.constexpr,
    NOTES: gl.constexpr,
    OVERLAP: gl.constexpr,
    SETTLED: gl.constexpr,
):
    # Every warp waits for the kernel before by itself, behind what needs none of its results.
    if OVERLAP:
        gdc_launch_dependents()
    dtype: gl.constexpr = k_pages.dtype
    q_ring = gl.allocate_shared_memory(
        dtype, [2 * Q_STAGES, BLOCK_Q // 2, 2 * _HALF // BLOCK_Q, HEAD_DIM], q_pages.layout
    )
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_pages.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_pages.layout)
    note_ring = gl.allocate_shared_memory(gl.int32, [NOTES, _NOTE_LEN], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    queries = (q_ring, _allocate_barriers(Q_STAGES, 1), _allocate_barriers(Q_STAGES, 2))
    keys = (k_ring, _allocate_barriers(STAGES, 1))
    values = (v_ring, _allocate_barriers(STAGES, 1))
    left = _allocate_barriers(STAGES, 2)
    notes = (note_ring, _allocate_barriers(NOTES, 1), _allocate_barriers(NOTES, NOTE_READERS))
    exact_rooms = gl.allocate_shared_memory(dtype, [2, _EXACT_KEYS, HEAD_DIM], k_pages.layout)
    caches = (
        (k_cache, k_rows_per_block * k_slot_stride, k_slot_stride, k_head_stride),
        (v_cache, v_rows_per_block * v_slot_stride, v_slot_stride, v_head_stride),
    )
    tables = (block_tables, block_table_stride)
    totals = gl.allocate_shared_memory(gl.float32, [2, _HALF, 4], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    fence_async_shared()
    gl.warp_specialize(
        [
            (attend, (
                out, part_out, part_lse, arrivals, queries, keys, values, left, notes, totals, score_scale, value_scale,
                caches, tables, exact_rooms, 0, SLIDING_WINDOW, BLOCK_SIZE, PAGE, NUM_HEADS, NUM_KV_HEADS, GROUP, BLOCK_Q,
                TILE, STAGES, Q_STAGES, NOTES, OVERLAP,
            )),
            (attend, (
                out, part_out, part_lse, arrivals, queries, keys, values, left, notes, totals, score_scale, value_scale,
                caches, tables, exact_rooms, 1, SLIDING_WINDOW, BLOCK_SIZE, PAGE, NUM_HEADS, NUM_KV_HEADS, GROUP, BLOCK_Q,
                TILE, STAGES, Q_STAGES, NOTES, OVERLAP,
            )),
            (copy_tiles, (
                q_pages, k_pages, queries, keys, left, notes, block_tables, block_table_stride, k_rows_per_block,
                k_head_stride, True, SLIDING_WINDOW, BLOCK_SIZE, PAGE, NUM_KV_HEADS, GROUP, BLOCK_Q, TILE, STAGES,
                Q_STAGES, NOTES, OVERLAP, SETTLED,
            )),
            (copy_tiles, (
                q_pages, v_pages, queries, values, left, notes, block_tables, block_table_stride, v_rows_per_block,
                v_head_stride, False, SLIDING_WINDOW, BLOCK_SIZE, PAGE, NUM_KV_HEADS, GROUP, BLOCK_Q, TILE, STAGES,
                Q_STAGES, NOTES, OVERLAP, SETTLED,
            )),
            (hand_out_items, (
                notes, taken, items, NUM_KV_HEADS, SLIDING_WINDOW, BLOCK_Q, TILE, NOTES, OVERLAP, SETTLED,
            )),
        ],
        [4, 1, 1, 1],
        [232, 40, 40, 40],  # registers of a thread; with those of the first warpgroup the whole file
    )  # fmt: skip


def can_attend(k_cache: Tensor, num_heads: int, config: PrefillConfig) -> bool:
    """Whether the kernel takes caches like this one, for ``num_heads`` query heads: pages that fill tiles, as TMA has it."""
    _, block_size, num_kv_heads, head_dim = k_cache.shape
    block_stride, slot_stride, head_stride, _ = k_cache.stride()
    return (
        k_cache.dtype in (torch.bfloat16, torch.float16)
        and head_dim in (64, 128)
        and num_heads // num_kv_heads <= WARPGROUP_ROWS
        and block_size % EXACT_KEYS == 0
        and (config.tile % block_size == 0 or block_size % config.tile == 0)
        and block_stride % slot_stride == 0
        and slot_stride % 8 == head_stride % 8 == 0
        and k_cache.data_ptr() % 16 == 0
    )


def paged_attention_prefill_hopper(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    out: Tensor,
    *,
    scale: float,
    v_scale: float = 1.0,
    schedule: PrefillSchedule,
    settled: bool = False,
) -> None:
    """Fill the rows of ``out``; the contract of `prefill.paged_attention_prefill`. What it means that tables and earlier keys
    are ``settled`` is said by `dispatch.paged_attention`.
    """
    config, (_, num_heads, head_dim), (_, block_size, num_kv_heads, _) = (
        schedule.config,
        q.shape,
        k_cache.shape,
    )
    page = min(block_size, config.tile)
    overlap = overlaps_launches(q.device)
    programs = min(config.resident_programs, schedule.max_items * num_kv_heads)
    _paged_attention_prefill_hopper_kernel[(programs,)](
        _describe_queries(q, schedule.queries_per_tile // 2),
        _describe_pages(k_cache, page),
        _describe_pages(v_cache, page),
        k_cache,
        v_cache,
        out,
        schedule.part_out,
        schedule.part_lse,
        schedule.arrivals,
        schedule.taken,
        block_tables,
        schedule.items,
        scale * _LOG2_E,
        v_scale,
        block_tables.stride(0),
        k_cache.stride(0) // k_cache.stride(1),
        v_cache.stride(0) // v_cache.stride(1),
        k_cache.stride(1),
        v_cache.stride(1),
        k_cache.stride(2),
        v_cache.stride(2),
        SLIDING_WINDOW=schedule.sliding_window or 0,
        BLOCK_SIZE=block_size,
        PAGE=page,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_Q=schedule.queries_per_tile,
        TILE=config.tile,
        STAGES=config.num_stages,
        Q_STAGES=_Q_STAGES,
        NOTES=_NOTES,
        OVERLAP=overlap,
        SETTLED=settled and overlap,
        num_warps=4,
        **launch_options(overlap),
    )


def _describe_pages(cache: Tensor, page: int) -> TensorDescriptor:
    """Describe a cache ``[blocks, slots, Hkv, D]`` as rows of slots; a box is the part of a page that one head has."""
    num_blocks, block_size, num_kv_heads, head_dim = cache.shape
    block_stride, slot_stride, head_stride, _ = cache.stride()
    rows = (num_blocks - 1) * (block_stride // slot_stride) + block_size
    columns = (num_kv_heads - 1) * head_stride + head_dim
    return describe_boxes(cache, [rows, columns], [slot_stride, 1], [page, head_dim])


def _describe_queries(q: Tensor, num_queries: int) -> TensorDescriptor:
    """Describe q ``[T, Hq, D]``; a box has the rows of one warpgroup: some tokens, each with its group's heads and perhaps
    some of the next, up to a power of two.
    """
    return describe_boxes(
        q, list(q.shape), list(q.stride()), [num_queries, WARPGROUP_ROWS // num_queries, q.shape[2]]
    )
