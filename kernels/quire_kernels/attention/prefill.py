"""Triton paged attention for sequences with several query tokens: prompts, chunks, cached prefixes.

Truth: `attention/reference.py`. One program holds a tile of query tokens with all query heads that share a
key head and walks the visible keys (FlashAttention-2; Dao, 2023). The grid is sized by the number of padded tokens
alone: programs take the items of the step's schedule in turn, and those without an item exit at once. Where a step
has few tiles, an item is one of several splits of a tile's keys: each leaves a part, and the program that comes last
merges the parts of the tile, in their order, by log-sum-exp.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.cut import next_power_of_2
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

_LOG2_E = 1.4426950408889634
# Programs beyond those that full tiles need: steps of many short prompts have more tiles, and take turns.
_SPARE_PROGRAMS = 32


@triton.jit
def _blocks_of_keys(table_row, start, num_keys, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr):
    """Return the cache block of each key of the tile from ``start``, a multiple of TILE; 0 for keys past the end."""
    place = tl.arange(0, TILE)
    if TILE % BLOCK_SIZE == 0:
        blocks = table_row + start // BLOCK_SIZE + place // BLOCK_SIZE
    else:
        blocks = table_row + (start + place) // BLOCK_SIZE
    return tl.load(blocks, mask=place < num_keys - start, other=0).to(tl.int64)


@triton.jit
def _merge_splits(
    part_out,
    part_lse,
    first_place,
    place_stride,
    num_splits,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Return the merged output ``[ROWS, WIDTH]`` of the parts of one tile."""
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    peak = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    merged = tl.zeros([ROWS, WIDTH], tl.float32)
    for split in tl.range(0, num_splits, num_stages=1):
        place = first_place + split * place_stride + row
        lse = tl.load(part_lse + place, cache_modifier=".cg")
        values = tl.load(
            part_out + place[:, None] * HEAD_DIM + dim[None, :],
            mask=(dim < HEAD_DIM)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        new_peak = tl.maximum(peak, lse)
        reference = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        weight = tl.exp2(lse - reference)
        rescale = tl.exp2(peak - reference)
        total = total * rescale + weight
        merged = merged * rescale[:, None] + values * weight[:, None]
        peak = new_peak
    return merged / tl.where(total == 0.0, 1.0, total)[:, None]


@triton.jit
def _paged_attention_prefill_kernel(
    q,
    k_cache,
    v_cache,
    out,  # [T, Hq, D]
    part_out,  # [parts, Hkv, ROWS, D] float32
    part_lse,  # [parts, Hkv, ROWS] float32, base 2
    arrivals,  # [parts, Hkv]
    block_tables,
    num_items,  # [1]
    items,  # [items, 8]
    score_scale,  # scale * log2(e), positive
    value_scale,
    block_table_stride,
    q_token_stride,
    q_head_stride,
    k_block_stride,
    k_slot_stride,
    k_head_stride,
    v_block_stride,
    v_slot_stride,
    v_head_stride,
    SLIDING_WINDOW: tl.constexpr,  # 0: none
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    end_of_items = tl.load(num_items)
    kv_head = tl.program_id(1)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    place = tl.arange(0, TILE)
    k_head = k_cache + kv_head * k_head_stride
    v_head = v_cache + kv_head * v_head_stride
    turn = tl.program_id(0)
    while turn < end_of_items:
        item = items + turn * 8
        turn += tl.num_programs(0)
        sequence = tl.load(item)
        first_token = tl.load(item + 1)
        query_len = tl.load(item + 2)
        num_cached = tl.load(item + 3)
        first_query = tl.load(item + 4) * BLOCK_Q
        num_splits = tl.load(item + 5)
        split = tl.load(item + 6)

        query = first_query + row // GROUP
        token = (first_token + query).to(tl.int64)
        head = kv_head * GROUP + row % GROUP
        live = (row < BLOCK_Q * GROUP) & (query < query_len)
        mask = live[:, None] & (dim[None, :] < HEAD_DIM)
        queries = tl.load(
            q + token[:, None] * q_token_stride + head[:, None] * q_head_stride + dim[None, :],
            mask=mask,
            other=0.0,
        )
        position = num_cached + query
        num_keys = num_cached + tl.minimum(first_query + BLOCK_Q, query_len)
        all_see = num_cached + first_query + 1  # keys visible to every row of the tile
        begin = 0
        if SLIDING_WINDOW > 0:
            begin = tl.maximum(all_see - SLIDING_WINDOW, 0) // TILE * TILE
        span = tl.cdiv(tl.cdiv(num_keys - begin, TILE), num_splits) * TILE
        begin += split * span
        end = tl.minimum(begin + span, num_keys)

        maximum = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        accumulated = tl.zeros([ROWS, WIDTH], tl.float32)
        table_row = block_tables + sequence.to(tl.int64) * block_table_stride
        # Where blocks fit into tiles, a key's place in its block is that of its place in the tile: one multiplication and
        # addition per row and tile is left.
        slot = place % BLOCK_SIZE
        k_place = k_head + slot[:, None] * k_slot_stride + dim[None, :]
        v_place = v_head + slot[:, None] * v_slot_stride + dim[None, :]
        # The table is read one tile ahead: as a stage of its own in the pipeline it would take the place of one of keys.
        following = _blocks_of_keys(table_row, begin, num_keys, BLOCK_SIZE, TILE)
        for start in range(begin, end, TILE):
            key = start + place
            if TILE % BLOCK_SIZE:
                slot = key % BLOCK_SIZE
                k_place = k_head + slot[:, None] * k_slot_stride + dim[None, :]
                v_place = v_head + slot[:, None] * v_slot_stride + dim[None, :]
            block = following
            following = _blocks_of_keys(table_row, start + TILE, num_keys, BLOCK_SIZE, TILE)
            inside = (place < num_keys - start)[:, None] & (dim[None, :] < HEAD_DIM)
            keys = tl.load(k_place + (block * k_block_stride)[:, None], mask=inside, other=0.0)
            values = tl.load(v_place + (block * v_block_stride)[:, None], mask=inside, other=0.0)
            scores = tl.dot(queries, tl.trans(keys.to(queries.dtype)), input_precision=PRECISION)
            if SLIDING_WINDOW > 0 or start + TILE > all_see:
                visible = key[None, :] <= position[:, None]
                if SLIDING_WINDOW > 0:
                    visible = visible & (key[None, :] > position[:, None] - SLIDING_WINDOW)
                scores = tl.where(visible, scores, -float("inf"))
            # Scaled after the maximum is taken, so that scale and subtraction are one instruction per score.
            new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * score_scale)
            # A row that has seen no key yet must not subtract infinity from infinity.
            reference = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
            weights = tl.exp2(tl.fma(scores, score_scale, -reference[:, None]))
            rescale = tl.exp2(maximum - reference)
            total = total * rescale + tl.sum(weights, axis=1)
            accumulated = accumulated * rescale[:, None]
            accumulated = tl.dot(
                weights.to(queries.dtype),
                values.to(queries.dtype),
                acc=accumulated,
                input_precision=PRECISION,
            )
            maximum = new_maximum
        total = tl.where(total == 0.0, 1.0, total)
        result = accumulated * (value_scale / total)[:, None]
        target = out + (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
        if num_splits == 1:
            tl.store(target, result.to(out.dtype.element_ty), mask=mask)
        else:
            first_part = tl.load(item + 7)
            first_place = (first_part * NUM_KV_HEADS + kv_head) * ROWS
            part_row = first_place + split * (NUM_KV_HEADS * ROWS) + row
            part = part_out + part_row[:, None] * HEAD_DIM + dim[None, :]
            tl.store(part, result, mask=(dim < HEAD_DIM)[None, :])
            tl.store(part_lse + part_row, maximum + tl.log2(total))
            # Every thread's part must be written before one of them says so.
            tl.debug_barrier()
            arrival = arrivals + first_part * NUM_KV_HEADS + kv_head
            if tl.atomic_add(arrival, 1, sem="acq_rel") == num_splits - 1:
                merged = _merge_splits(
                    part_out,
                    part_lse,
                    first_place,
                    NUM_KV_HEADS * ROWS,
                    num_splits,
                    ROWS,
                    HEAD_DIM,
                    WIDTH,
                )
                tl.store(target, merged.to(out.dtype.element_ty), mask=mask)
                tl.store(arrival, 0)  # for the next layer


def paged_attention_prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    out: Tensor,
    *,
    scale: float,
    v_scale: float = 1.0,
    schedule: PrefillSchedule,
) -> None:
    """Fill the rows of ``out [T, Hq, D]`` (contiguous) that belong to sequences with two or more query
    tokens.

    Shapes are those of `reference.paged_attention` and are checked by the caller. No other row is written.
    """
    config, (num_tokens, num_heads, head_dim), num_kv_heads = schedule.config, q.shape, k_cache.shape[2]
    group = num_heads // num_kv_heads
    useful = num_tokens // schedule.queries_per_tile + config.num_programs + _SPARE_PROGRAMS
    programs = min(useful, schedule.max_items)
    overlap = overlaps_launches(q.device)
    _paged_attention_prefill_kernel[(programs, num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        schedule.part_out,
        schedule.part_lse,
        schedule.arrivals,
        block_tables,
        schedule.num_items,
        schedule.items,
        scale * _LOG2_E,
        v_scale,
        block_tables.stride(0),
        *q.stride()[:2],
        *k_cache.stride()[:3],
        *v_cache.stride()[:3],
        SLIDING_WINDOW=schedule.sliding_window or 0,
        BLOCK_SIZE=k_cache.shape[1],
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        WIDTH=max(16, next_power_of_2(head_dim)),
        ROWS=schedule.rows_per_tile,
        BLOCK_Q=schedule.queries_per_tile,
        TILE=config.tile,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        OVERLAP=overlap,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(overlap),
    )
