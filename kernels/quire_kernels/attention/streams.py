"""Triton paged attention for sequences with one query token, as equal streams of work over all sequences.

Truth: `attention/reference.py`. Every program takes as many tiles of keys as every other, from the rows that the
step's schedule gives it, so lengths may differ and tables may be padded at no cost (the idea of Stream-K; Osama et
al., 2023). A row that lies in one stream is written at once; of a row cut among several each stream leaves a part,
and the stream that comes last merges them, in the order of the streams, by their log-sum-exp.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import AttentionSchedule
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

_LOG2_E = 1.4426950408889634
_MERGED_PARTS = 64  # parts of one head merged per step


@triton.jit
def _attend_to_span(
    queries,
    k_head,
    v_head,
    table_row,
    begin,
    end,
    score_scale,
    k_block_stride,
    k_slot_stride,
    v_block_stride,
    v_slot_stride,
    GROUP_ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return the maximum, the sum of weights and the weighted values of the keys from ``begin`` to ``end``."""
    dim = tl.arange(0, WIDTH)
    maximum = tl.full([GROUP_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    accumulated = tl.zeros([GROUP_ROWS, WIDTH], tl.float32)
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        in_range = key < end
        block = tl.load(table_row + key // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
        slot = key % BLOCK_SIZE
        k_row = k_head + block * k_block_stride + slot * k_slot_stride
        v_row = v_head + block * v_block_stride + slot * v_slot_stride
        inside = in_range[:, None] & (dim[None, :] < HEAD_DIM)
        keys = tl.load(k_row[:, None] + dim[None, :], mask=inside, other=0.0).to(queries.dtype)
        values = tl.load(v_row[:, None] + dim[None, :], mask=inside, other=0.0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * score_scale
        scores = tl.where(in_range[None, :], scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulated = accumulated * rescale[:, None]
        accumulated += tl.dot(weights.to(queries.dtype), values, input_precision=PRECISION)
        maximum = new_maximum
    return maximum, total, accumulated


@triton.jit
def _merge_parts(
    part_out,
    part_lse,
    target,  # the first head of the group
    first_head,
    first_stream,
    last_stream,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ALL_PARTS: tl.constexpr,  # at least the number of streams
    PARTS: tl.constexpr,
):
    dim = tl.arange(0, WIDTH)
    every = first_stream + tl.arange(0, ALL_PARTS)
    for member in tl.static_range(GROUP):
        head = first_head + member
        # A row ends its first stream (place 1) and begins every other (place 0).
        place = (every * 2 + (every == first_stream).to(tl.int32)) * NUM_HEADS + head
        lse = tl.load(part_lse + place, mask=every <= last_stream, other=-float("inf"), cache_modifier=".cg")
        peak = tl.max(lse, axis=0)
        total = tl.sum(tl.exp2(lse - peak), axis=0)
        merged = tl.zeros([WIDTH], tl.float32)
        for begin in range(first_stream, last_stream + 1, PARTS):
            stream = begin + tl.arange(0, PARTS)
            used = stream <= last_stream
            part = (stream * 2 + (stream == first_stream).to(tl.int32)) * NUM_HEADS + head
            part_log = tl.load(part_lse + part, mask=used, other=-float("inf"), cache_modifier=".cg")
            weight = tl.exp2(part_log - peak)
            inside = used[:, None] & (dim[None, :] < HEAD_DIM)
            values = tl.load(
                part_out + part[:, None] * HEAD_DIM + dim[None, :],
                mask=inside,
                other=0.0,
                cache_modifier=".cg",
            )
            merged += tl.sum(values * weight[:, None], axis=0)
        tl.store(
            target + member * HEAD_DIM + dim,
            (merged / total).to(target.dtype.element_ty),
            mask=dim < HEAD_DIM,
        )


@triton.jit
def _paged_attention_streams_kernel(
    q,
    k_cache,
    v_cache,
    out,  # [T, Hq, D]
    part_out,  # [NUM_STREAMS, 2, Hq, D] float32
    part_lse,  # [NUM_STREAMS, 2, Hq] float32, base 2
    arrivals,  # [R, Hkv]
    block_tables,
    query_start_loc,
    seq_lens,
    tile_starts,  # [R + 1]
    stream_rows,
    num_rows,
    score_scale,  # scale * log2(e)
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
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    NUM_STREAMS: tl.constexpr,
    ALL_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    stream = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_tiles = tl.load(tile_starts + num_rows)
    share = (num_tiles + NUM_STREAMS - 1) // NUM_STREAMS
    tile = stream * share
    last_tile = tl.minimum(tile + share, num_tiles)
    member = tl.arange(0, GROUP_ROWS)
    dim = tl.arange(0, WIDTH)
    head = kv_head * GROUP + member
    q_mask = (member[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
    k_head = k_cache + kv_head * k_head_stride
    v_head = v_cache + kv_head * v_head_stride
    row = tl.load(stream_rows + stream)
    while tile < last_tile:
        row_start = tl.load(tile_starts + row)
        row_end = tl.load(tile_starts + row + 1)
        if row_end > tile:
            token = tl.load(query_start_loc + row).to(tl.int64)
            seq_len = tl.load(seq_lens + row)
            first_key = 0
            if SLIDING_WINDOW > 0:
                first_key = tl.maximum(seq_len - SLIDING_WINDOW, 0)
            stop_tile = tl.minimum(last_tile, row_end)
            queries = tl.load(
                q + token * q_token_stride + head[:, None] * q_head_stride + dim[None, :],
                mask=q_mask,
                other=0.0,
            )
            maximum, total, accumulated = _attend_to_span(
                queries,
                k_head,
                v_head,
                block_tables + row.to(tl.int64) * block_table_stride,
                first_key + (tile - row_start) * TILE,
                tl.minimum(first_key + (stop_tile - row_start) * TILE, seq_len),
                score_scale,
                k_block_stride,
                k_slot_stride,
                v_block_stride,
                v_slot_stride,
                GROUP_ROWS,
                BLOCK_SIZE,
                HEAD_DIM,
                WIDTH,
                TILE,
                PRECISION,
            )
            result = accumulated * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
            target = out + (token * NUM_HEADS + kv_head * GROUP) * HEAD_DIM
            first_stream = row_start // share
            last_stream = (row_end - 1) // share
            if first_stream == last_stream:
                place = target + member[:, None] * HEAD_DIM + dim[None, :]
                tl.store(place, result.to(out.dtype.element_ty), mask=q_mask)
            else:
                part = (stream * 2 + (stream == first_stream).to(tl.int32)) * NUM_HEADS + head
                tl.store(part_out + part[:, None] * HEAD_DIM + dim[None, :], result, mask=q_mask)
                tl.store(part_lse + part, maximum + tl.log2(total), mask=member < GROUP)
                # Every thread's part must be written before one of them says so.
                tl.debug_barrier()
                arrival = arrivals + row * NUM_KV_HEADS + kv_head
                arrived = tl.atomic_add(arrival, 1, sem="acq_rel")
                if arrived == last_stream - first_stream:
                    _merge_parts(
                        part_out,
                        part_lse,
                        target,
                        kv_head * GROUP,
                        first_stream,
                        last_stream,
                        NUM_HEADS,
                        GROUP,
                        HEAD_DIM,
                        WIDTH,
                        ALL_PARTS,
                        PARTS,
                    )
                    tl.store(arrival, 0)  # for the next layer
            tile = stop_tile
        row += 1


def paged_attention_streams(
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
    schedule: AttentionSchedule,
) -> None:
    """Fill the rows of ``out [T, Hq, D]`` (contiguous) that belong to sequences with exactly one query token.

    Shapes are those of `reference.paged_attention`, the tables may be padded, and the caller checks them. The launch
    is the same for every step.
    """
    config, (_, num_heads, head_dim), num_kv_heads = schedule.stream, q.shape, k_cache.shape[2]
    group = num_heads // num_kv_heads
    all_parts = triton.next_power_of_2(config.num_streams)
    overlap = overlaps_launches(q.device)
    _paged_attention_streams_kernel[(config.num_streams, num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        schedule.part_out,
        schedule.part_lse,
        schedule.arrivals,
        block_tables,
        query_start_loc,
        seq_lens,
        schedule.decode_tile_starts,
        schedule.stream_rows,
        seq_lens.shape[0],
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
        GROUP_ROWS=max(16, triton.next_power_of_2(group)),
        HEAD_DIM=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)),
        TILE=config.tile,
        NUM_STREAMS=config.num_streams,
        ALL_PARTS=all_parts,
        PARTS=min(_MERGED_PARTS, all_parts),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        OVERLAP=overlap,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(overlap),
    )
