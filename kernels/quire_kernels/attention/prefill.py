"""Triton paged attention for sequences with several query tokens: prompts, chunks, cached prefixes.

Truth: `attention/reference.py`. One program holds a tile of query tokens with all query heads that share a
key head and walks the visible keys (FlashAttention-2; Dao, 2023). The grid is sized by the number of padded tokens
alone: programs take the tiles of the step's schedule in turn, and those without a tile exit at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import AttentionSchedule

_LOG2_E = 1.4426950408889634
# Programs beyond those that full tiles need: steps of many short prompts have more tiles, and take turns.
_SPARE_PROGRAMS = 32


@triton.jit
def _attend_to_keys(
    queries,
    maximum,
    total,
    accumulated,
    k_head,
    v_head,
    table_row,
    position,  # [ROWS] of each query row
    begin,
    end,
    num_keys,
    score_scale,
    k_block_stride,
    k_slot_stride,
    v_block_stride,
    v_slot_stride,
    SLIDING_WINDOW: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dim = tl.arange(0, WIDTH)
    for start in range(begin, end, TILE):
        key = start + tl.arange(0, TILE)
        slot = key % BLOCK_SIZE
        if MASKED:
            in_range = key < num_keys
            block = tl.load(table_row + key // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
            inside = in_range[:, None] & (dim[None, :] < HEAD_DIM)
        else:
            block = tl.load(table_row + key // BLOCK_SIZE).to(tl.int64)
            inside = (dim < HEAD_DIM)[None, :]
        k_row = k_head + block * k_block_stride + slot * k_slot_stride
        v_row = v_head + block * v_block_stride + slot * v_slot_stride
        if MASKED or WIDTH != HEAD_DIM:
            keys = tl.load(k_row[:, None] + dim[None, :], mask=inside, other=0.0)
            values = tl.load(v_row[:, None] + dim[None, :], mask=inside, other=0.0)
        else:
            keys = tl.load(k_row[:, None] + dim[None, :])
            values = tl.load(v_row[:, None] + dim[None, :])
        keys = keys.to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * score_scale
        if MASKED:
            visible = key[None, :] <= position[:, None]
            if SLIDING_WINDOW > 0:
                visible = visible & (key[None, :] > position[:, None] - SLIDING_WINDOW)
            scores = tl.where(visible, scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        # A row that has seen no key yet must not subtract infinity from infinity.
        reference = tl.where(new_maximum == -float("inf"), 0.0, new_maximum)
        weights = tl.exp2(scores - reference[:, None])
        rescale = tl.exp2(maximum - reference)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulated = accumulated * rescale[:, None]
        accumulated = tl.dot(
            weights.to(queries.dtype), values.to(queries.dtype), acc=accumulated, input_precision=PRECISION
        )
        maximum = new_maximum
    return maximum, total, accumulated


@triton.jit
def _paged_attention_prefill_kernel(
    q,
    k_cache,
    v_cache,
    out,  # [T, Hq, D]
    block_tables,
    query_start_loc,
    seq_lens,
    tile_starts,  # [R + 1]
    tile_rows,
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
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    num_tiles = tl.load(tile_starts + num_rows)
    kv_head = tl.program_id(1)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, WIDTH)
    turn = tl.program_id(0)
    while turn < num_tiles:
        # The last tiles of a prompt see the most keys; starting with them leaves the short ones to fill the end.
        tile = num_tiles - 1 - turn
        turn += tl.num_programs(0)
        sequence = tl.load(tile_rows + tile)
        first_token = tl.load(query_start_loc + sequence)
        query_len = tl.load(query_start_loc + sequence + 1) - first_token
        first_query = (tile - tl.load(tile_starts + sequence)) * BLOCK_Q
        num_cached = tl.load(seq_lens + sequence) - query_len

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
        unmasked_end = all_see // TILE * TILE
        if SLIDING_WINDOW > 0:
            begin = tl.maximum(all_see - SLIDING_WINDOW, 0) // TILE * TILE
            unmasked_end = begin

        maximum = tl.full([ROWS], -float("inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        accumulated = tl.zeros([ROWS, WIDTH], tl.float32)
        table_row = block_tables + sequence.to(tl.int64) * block_table_stride
        k_head = k_cache + kv_head * k_head_stride
        v_head = v_cache + kv_head * v_head_stride
        if SLIDING_WINDOW == 0:
            maximum, total, accumulated = _attend_to_keys(
                queries,
                maximum,
                total,
                accumulated,
                k_head,
                v_head,
                table_row,
                position,
                begin,
                unmasked_end,
                num_keys,
                score_scale,
                k_block_stride,
                k_slot_stride,
                v_block_stride,
                v_slot_stride,
                SLIDING_WINDOW,
                BLOCK_SIZE,
                HEAD_DIM,
                WIDTH,
                TILE,
                False,
                PRECISION,
            )
        maximum, total, accumulated = _attend_to_keys(
            queries,
            maximum,
            total,
            accumulated,
            k_head,
            v_head,
            table_row,
            position,
            unmasked_end,
            num_keys,
            num_keys,
            score_scale,
            k_block_stride,
            k_slot_stride,
            v_block_stride,
            v_slot_stride,
            SLIDING_WINDOW,
            BLOCK_SIZE,
            HEAD_DIM,
            WIDTH,
            TILE,
            True,
            PRECISION,
        )
        result = accumulated * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
        target = out + (token[:, None] * NUM_HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=mask)


def paged_attention_prefill(
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
    """Fill the rows of ``out [T, Hq, D]`` (contiguous) that belong to sequences with two or more query
    tokens.

    Shapes are those of `reference.paged_attention` and are checked by the caller. No other row is written.
    """
    config, (num_tokens, num_heads, head_dim), num_kv_heads = schedule.prefill, q.shape, k_cache.shape[2]
    group = num_heads // num_kv_heads
    programs = min(num_tokens // schedule.queries_per_tile + _SPARE_PROGRAMS, schedule.max_prefill_tiles)
    _paged_attention_prefill_kernel[(programs, num_kv_heads)](
        q,
        k_cache,
        v_cache,
        out,
        block_tables,
        query_start_loc,
        seq_lens,
        schedule.prefill_tile_starts,
        schedule.prefill_tile_rows,
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
        GROUP=group,
        HEAD_DIM=head_dim,
        WIDTH=max(16, triton.next_power_of_2(head_dim)),
        ROWS=max(config.rows, triton.next_power_of_2(group)),
        BLOCK_Q=schedule.queries_per_tile,
        TILE=config.tile,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
