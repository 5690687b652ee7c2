"""Paged attention for sequences with several query tokens on Hopper: copies, products and softmax overlap by hand.

Truth: `attention/reference.py`. The work is that of `prefill.py`, by the same schedule; only its pace differs. Three warps
feed (`hopper_feed.py`); two warpgroups, each with half of the query rows of an item, share the tiles of keys and values.
A warpgroup starts the products of a tile's keys and of the values before it in one go, and takes the softmax while the
other's run (after FlashAttention-3; Shah et al., 2024). Programs stay on their multiprocessor and take items until none is
left, so that the first tiles of an item are copied while the one before it ends.

Knows Hopper alone, 16-bit tensors, and pages that fill tiles (`can_attend`). Gluon is an experiment of Triton's: whoever
imports this module must be ready for an ImportError or AttributeError.
"""

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire_kernels.attention.hopper_feed import (
    NOTE_READERS,
    copy_tiles,
    hand_out_items,
    range_of_keys,
    read_note,
    stage_and_phase,
)
from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.attention.tuning import PrefillConfig
from quire_kernels.overlap import launch_options, overlaps_launches

_LOG2_E = 1.4426950408889634
_WARPGROUP_ROWS = 64
_Q_STAGES, _NOTES = 2, 2  # stages of these rings
_HALF = gl.constexpr(_WARPGROUP_ROWS)
_NEGATIVE_INFINITY = gl.constexpr(-float("inf"))
# Its name in Triton 3.6, and from 3.7 on.
_synchronize = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.constexpr_function
def _product_layout(columns):
    """How a warpgroup holds a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def _page_layout(columns):
    """How a warpgroup holds rows that it moves, 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // columns, columns // 8], [4, 1], [1, 0])


@gluon.jit
def _allocate_barriers(COUNT: gl.constexpr):
    """Return the barriers of a ring that say which stages are full, and which are empty."""
    full = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    return full, empty


@gluon.jit
def _start_barriers(full, empty, COUNT: gl.constexpr, READERS: gl.constexpr):
    for stage in gl.static_range(COUNT):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=READERS)


@gluon.jit
def _multiply_keys(queries, keys, done, STAGES: gl.constexpr):
    """Start the product of the queries and the keys of a tile, once these are there."""
    ring, full, _empty = keys
    TILE: gl.constexpr = ring.shape[1]
    stage, phase = stage_and_phase(done, STAGES)
    mbarrier.wait(full.index(stage), phase)
    zeros = gl.zeros([_HALF, TILE], gl.float32, _product_layout(TILE))
    return warpgroup_mma(queries, ring.index(stage).permute((1, 0)), zeros, use_acc=False, is_async=True)


@gluon.jit
def _softmax(scores, maximum, total, position, start, scale, MASKED: gl.constexpr, WINDOW: gl.constexpr):
    """Return weights, their rescaling, and the new maximum and total of each row."""
    if MASKED:
        TILE: gl.constexpr = scores.shape[1]
        LAYOUT: gl.constexpr = scores.type.layout
        key = start + gl.arange(0, TILE, gl.SliceLayout(0, LAYOUT))
        visible = key[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (key[None, :] > position[:, None] - WINDOW)
        scores = gl.where(visible, scores, _NEGATIVE_INFINITY)
    new_maximum = gl.maximum(maximum, gl.max(scores, 1) * scale)
    reference = new_maximum
    if MASKED:  # a row that has seen no key yet must not subtract infinity from infinity
        reference = gl.where(new_maximum == _NEGATIVE_INFINITY, 0.0, new_maximum)
    weights = gl.exp2(gl.fma(scores, scale, -reference[:, None]))
    rescale = gl.exp2(maximum - reference)
    return weights, rescale, new_maximum, total * rescale + gl.sum(weights, 1)


@gluon.jit
def _attend_tile(
    queries, keys, values, weights, accumulated, maximum, total, position, start, done, scale,
    MASKED: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start the products of this tile's keys and of the values before it; return the state after this one's softmax."""
    scores = _multiply_keys(queries, keys, done, STAGES)
    ring, full, empty = values
    before, phase = stage_and_phase(done - 1, STAGES)
    mbarrier.wait(full.index(before), phase)
    accumulated = warpgroup_mma(weights, ring.index(before), accumulated, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    mbarrier.arrive(keys[2].index(done % STAGES), count=1)
    new_weights, rescale, maximum, total = _softmax(
        scores, maximum, total, position, start, scale, MASKED, WINDOW
    )
    accumulated, weights = warpgroup_mma_wait(0, deps=[accumulated, weights])
    mbarrier.arrive(empty.index(before), count=1)
    accumulated = (
        accumulated * gl.convert_layout(rescale, gl.SliceLayout(1, accumulated.type.layout))[:, None]
    )
    return _as_operand(new_weights, ring.dtype), accumulated, maximum, total


@gluon.jit
def _as_operand(weights, dtype: gl.constexpr):
    return gl.convert_layout(weights.to(dtype), gl.DotOperandLayout(0, weights.type.layout, 2))


@gluon.jit
def _clear_past_the_end(values, num_valid, PAGE: gl.constexpr):
    """Zero the rows of the last page that hold no token: what was left there may be no number, and zero times that is none."""
    if num_valid % PAGE > 0:
        TILE: gl.constexpr = values.shape[0]
        LAYOUT: gl.constexpr = _page_layout(values.shape[1])
        for page in gl.static_range(TILE // PAGE):
            if num_valid // PAGE == page:
                part = values.slice(page * PAGE, PAGE, 0)
                row = page * PAGE + gl.arange(0, PAGE, gl.SliceLayout(1, LAYOUT))
                held = part.load(LAYOUT)
                part.store(gl.where((row < num_valid)[:, None], held, gl.zeros_like(held)))
        fence_async_shared()
        _synchronize()


@gluon.jit
def _merge_splits(
    part_out, part_lse, first_place, place_stride, num_splits, HEAD_DIM: gl.constexpr, LAYOUT: gl.constexpr
):
    """Return the merged output ``[_HALF, HEAD_DIM]`` of the parts of one tile."""
    row = gl.arange(0, _HALF, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LAYOUT))
    peak = gl.full([_HALF], _NEGATIVE_INFINITY, gl.float32, gl.SliceLayout(1, LAYOUT))
    total = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, LAYOUT))
    merged = gl.zeros([_HALF, HEAD_DIM], gl.float32, LAYOUT)
    for split in range(num_splits):
        place = first_place + split * place_stride + row
        lse = gl.load(part_lse + place, cache_modifier=".cg")
        values = gl.load(part_out + place[:, None] * HEAD_DIM + dim[None, :], cache_modifier=".cg")
        new_peak = gl.maximum(peak, lse)
        reference = gl.where(new_peak == _NEGATIVE_INFINITY, 0.0, new_peak)
        weight = gl.exp2(lse - reference)
        rescale = gl.exp2(peak - reference)
        total = total * rescale + weight
        merged = merged * rescale[:, None] + values * weight[:, None]
        peak = new_peak
    return merged / gl.where(total == 0.0, 1.0, total)[:, None]


@gluon.jit
def _attend(
    out, part_out, part_lse, arrivals, queries, keys, values, notes, score_scale, value_scale,
    HALF: gl.constexpr, WINDOW: gl.constexpr, PAGE: gl.constexpr, NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr, TILE: gl.constexpr,
    STAGES: gl.constexpr, Q_STAGES: gl.constexpr, NOTES: gl.constexpr,
):  # fmt: skip
    """A warpgroup: attends with one half of the rows of each item, and leaves every stage that it has read."""
    HEAD_DIM: gl.constexpr = keys[0].shape[2]
    TOKEN_ROWS: gl.constexpr = 2 * _HALF // BLOCK_Q  # the heads of a group, up to a power of two
    S_LAYOUT: gl.constexpr = _product_layout(TILE)
    O_LAYOUT: gl.constexpr = _product_layout(HEAD_DIM)
    q_ring, q_full, q_empty = queries
    s_row = HALF * _HALF + gl.arange(0, _HALF, gl.SliceLayout(1, S_LAYOUT))
    row = HALF * _HALF + gl.arange(0, _HALF, gl.SliceLayout(1, O_LAYOUT))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, O_LAYOUT))
    done = 0
    turn = 0
    kv_head, _s, first_token, query_len, num_cached, tile_of_row, num_splits, split, part = read_note(
        notes, turn, NOTES
    )
    while kv_head >= 0:
        num_keys, begin, num_tiles = range_of_keys(
            query_len, num_cached, tile_of_row, num_splits, split, WINDOW, BLOCK_Q, TILE
        )
        first_query = tile_of_row * BLOCK_Q
        position = num_cached + first_query + s_row // TOKEN_ROWS
        maximum = gl.full([_HALF], _NEGATIVE_INFINITY, gl.float32, gl.SliceLayout(1, S_LAYOUT))
        total = gl.zeros([_HALF], gl.float32, gl.SliceLayout(1, S_LAYOUT))
        accumulated = gl.zeros([_HALF, HEAD_DIM], gl.float32, O_LAYOUT)
        q_stage, q_phase = stage_and_phase(turn, Q_STAGES)
        mbarrier.wait(q_full.index(q_stage), q_phase)
        q_tile = q_ring.index(2 * q_stage + HALF).reshape([_HALF, HEAD_DIM])
        scores = warpgroup_mma_wait(0, deps=[_multiply_keys(q_tile, keys, done, STAGES)])
        stage, _phase = stage_and_phase(done, STAGES)
        mbarrier.arrive(keys[2].index(stage), count=1)
        weights, _rescale, maximum, total = _softmax(
            scores, maximum, total, position, begin, score_scale, True, WINDOW
        )
        weights = _as_operand(weights, q_ring.dtype)
        # Tiles that need no mask, as every row sees all of their keys; the first has one anyway.
        num_open = 1
        if WINDOW == 0:
            all_see = num_cached + first_query + HALF * (BLOCK_Q // 2) + 1
            num_open = gl.minimum(gl.maximum((all_see - begin) // TILE, 1), num_tiles)
        for tile in range(1, num_open):
            weights, accumulated, maximum, total = _attend_tile(
                q_tile, keys, values, weights, accumulated, maximum, total, position, begin + tile * TILE,
                done + tile, score_scale, False, WINDOW, STAGES,
            )  # fmt: skip
        for tile in range(num_open, num_tiles):
            weights, accumulated, maximum, total = _attend_tile(
                q_tile, keys, values, weights, accumulated, maximum, total, position, begin + tile * TILE,
                done + tile, score_scale, True, WINDOW, STAGES,
            )  # fmt: skip
        mbarrier.arrive(q_empty.index(q_stage), count=1)
        done += num_tiles
        stage, phase = stage_and_phase(done - 1, STAGES)
        mbarrier.wait(values[1].index(stage), phase)
        v_tile = values[0].index(stage)
        num_valid = num_keys - begin - (num_tiles - 1) * TILE
        if num_valid < TILE:
            _clear_past_the_end(v_tile, num_valid, PAGE)
        accumulated = warpgroup_mma(weights, v_tile, accumulated, is_async=True)
        accumulated = warpgroup_mma_wait(0, deps=[accumulated])
        mbarrier.arrive(values[2].index(stage), count=1)

        maximum = gl.convert_layout(maximum, gl.SliceLayout(1, O_LAYOUT))
        total = gl.convert_layout(gl.where(total == 0.0, 1.0, total), gl.SliceLayout(1, O_LAYOUT))
        result = accumulated * (value_scale / total)[:, None]
        query = first_query + row // TOKEN_ROWS
        live = ((row % TOKEN_ROWS < GROUP) & (query < query_len))[:, None]
        out_row = (first_token + query).to(gl.int64) * NUM_HEADS + kv_head * GROUP + row % TOKEN_ROWS
        target = out + (out_row * HEAD_DIM)[:, None] + dim[None, :]
        if num_splits == 1:
            gl.store(target, result.to(out.dtype.element_ty), mask=live)
        else:
            first_place = (part - split) * NUM_KV_HEADS + kv_head
            part_row = (first_place + split * NUM_KV_HEADS) * (2 * _HALF) + row
            gl.store(part_out + part_row[:, None] * HEAD_DIM + dim[None, :], result)
            gl.store(part_lse + part_row, maximum + gl.log2(total))
            # Every thread's part must be written before one of them says so.
            _synchronize()
            arrival = arrivals + first_place * 2 + HALF
            if gl.atomic_add(arrival, 1, sem="acq_rel") == num_splits - 1:
                merged = _merge_splits(
                    part_out, part_lse, first_place * (2 * _HALF) + HALF * _HALF, NUM_KV_HEADS * 2 * _HALF,
                    num_splits, HEAD_DIM, O_LAYOUT,
                )  # fmt: skip
                gl.store(target, merged.to(out.dtype.element_ty), mask=live)
                gl.store(arrival, 0)  # for the next layer
        turn += 1
        kv_head, _s, first_token, query_len, num_cached, tile_of_row, num_splits, split, part = read_note(
            notes, turn, NOTES
        )


# One kernel serves every number of sequences.
@gluon.jit(do_not_specialize=["num_rows"])
def _paged_attention_prefill_hopper_kernel(
    q_pages,  # descriptors: queries [T, Hq, D] in boxes of half an item; keys and values, [rows, columns], in pages
    k_pages,
    v_pages,
    out,  # [T, Hq, D]
    part_out,  # [parts, Hkv, 128, D] float32
    part_lse,  # [parts, Hkv, 128] float32, base 2
    arrivals,  # [parts, Hkv, 2]
    taken,  # [2]
    block_tables,
    query_start_loc,
    seq_lens,
    item_starts,  # [R + 1]
    item_rows,
    row_splits,  # [R]
    part_starts,  # [R]
    num_rows,
    score_scale,  # scale * log2(e), positive
    value_scale,
    block_table_stride,
    k_rows_per_block,
    v_rows_per_block,
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
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    dtype: gl.constexpr = k_pages.dtype
    q_ring = gl.allocate_shared_memory(
        dtype, [2 * Q_STAGES, BLOCK_Q // 2, 2 * _HALF // BLOCK_Q, HEAD_DIM], q_pages.layout
    )
    k_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], k_pages.layout)
    v_ring = gl.allocate_shared_memory(dtype, [STAGES, TILE, HEAD_DIM], v_pages.layout)
    q_full, q_empty = _allocate_barriers(Q_STAGES)
    k_full, k_empty = _allocate_barriers(STAGES)
    v_full, v_empty = _allocate_barriers(STAGES)
    note_ring = gl.allocate_shared_memory(gl.int32, [NOTES, 8], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    note_full, note_empty = _allocate_barriers(NOTES)
    _start_barriers(note_full, note_empty, NOTES, NOTE_READERS)
    _start_barriers(q_full, q_empty, Q_STAGES, 2)
    _start_barriers(k_full, k_empty, STAGES, 2)
    _start_barriers(v_full, v_empty, STAGES, 2)
    queries = (q_ring, q_full, q_empty)
    keys = (k_ring, k_full, k_empty)
    values = (v_ring, v_full, v_empty)
    notes = (note_ring, note_full, note_empty)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_attend, (
                out, part_out, part_lse, arrivals, queries, keys, values, notes, score_scale, value_scale,
                0, SLIDING_WINDOW, PAGE, NUM_HEADS, NUM_KV_HEADS, GROUP, BLOCK_Q, TILE, STAGES, Q_STAGES, NOTES,
            )),
            (_attend, (
                out, part_out, part_lse, arrivals, queries, keys, values, notes, score_scale, value_scale,
                1, SLIDING_WINDOW, PAGE, NUM_HEADS, NUM_KV_HEADS, GROUP, BLOCK_Q, TILE, STAGES, Q_STAGES, NOTES,
            )),
            (copy_tiles, (
                q_pages, k_pages, queries, keys, notes, block_tables, block_table_stride, k_rows_per_block, k_head_stride,
                True, SLIDING_WINDOW, BLOCK_SIZE, PAGE, GROUP, BLOCK_Q, TILE, STAGES, Q_STAGES, NOTES, OVERLAP,
            )),
            (copy_tiles, (
                q_pages, v_pages, queries, values, notes, block_tables, block_table_stride, v_rows_per_block, v_head_stride,
                False, SLIDING_WINDOW, BLOCK_SIZE, PAGE, GROUP, BLOCK_Q, TILE, STAGES, Q_STAGES, NOTES, OVERLAP,
            )),
            (hand_out_items, (
                notes, taken, item_starts, item_rows, row_splits, part_starts, query_start_loc, seq_lens, num_rows,
                NUM_KV_HEADS, NOTES, OVERLAP,
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
        and num_heads // num_kv_heads <= _WARPGROUP_ROWS
        and block_size % 16 == 0
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
    query_start_loc: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    *,
    scale: float,
    v_scale: float = 1.0,
    schedule: PrefillSchedule,
) -> None:
    """Fill the rows of ``out``; the contract of `prefill.paged_attention_prefill`."""
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
        out,
        schedule.part_out,
        schedule.part_lse,
        schedule.arrivals,
        schedule.taken,
        block_tables,
        query_start_loc,
        seq_lens,
        schedule.item_starts,
        schedule.item_rows,
        schedule.splits,
        schedule.part_starts,
        seq_lens.shape[0],
        scale * _LOG2_E,
        v_scale,
        block_tables.stride(0),
        k_cache.stride(0) // k_cache.stride(1),
        v_cache.stride(0) // v_cache.stride(1),
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
        num_warps=4,
        **launch_options(overlap),
    )


def _describe_pages(cache: Tensor, page: int) -> TensorDescriptor:
    """Describe a cache ``[blocks, slots, Hkv, D]`` as rows of slots; a box is the part of a page that one head has."""
    num_blocks, block_size, num_kv_heads, head_dim = cache.shape
    block_stride, slot_stride, head_stride, _ = cache.stride()
    rows = (num_blocks - 1) * (block_stride // slot_stride) + block_size
    columns = (num_kv_heads - 1) * head_stride + head_dim
    return _describe(cache, [rows, columns], [slot_stride, 1], [page, head_dim])


def _describe_queries(q: Tensor, num_queries: int) -> TensorDescriptor:
    """Describe q ``[T, Hq, D]``; a box has the rows of one warpgroup: some tokens, each with its group's heads and perhaps
    some of the next, up to a power of two.
    """
    return _describe(
        q, list(q.shape), list(q.stride()), [num_queries, _WARPGROUP_ROWS // num_queries, q.shape[2]]
    )


def _describe(tensor: Tensor, shape: list[int], strides: list[int], box: list[int]) -> TensorDescriptor:
    element = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    return TensorDescriptor(tensor, shape, strides, box, gl.NVMMASharedLayout.get_default_for(box, element))
