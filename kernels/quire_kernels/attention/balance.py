"""Cuts the attention of one step into equal work, on the device, in one launch that any CUDA graph can hold.

The launch depends on the number of table rows and of padded tokens alone. Rows are counted in blocks: every program
adds up the tiles of all rows (a few loads), then looks up the rows of its own run of items and streams.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import AttentionSchedule
from quire_kernels.attention.tuning import PrefillConfig, StreamConfig

_LOOKUPS = 32  # items and streams whose row one program looks up
_MAX_BLOCK_ROWS = 1024


@triton.jit
def _tiles_of_rows(
    row,
    query_start_loc,
    seq_lens,
    live,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    PREFILL_TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Return the decode tiles of each row, its prefill tiles, of one kind only, and the key tiles that one of these walks."""
    is_live = row < live
    query_len = tl.load(query_start_loc + row + 1, mask=is_live, other=0) - tl.load(
        query_start_loc + row, mask=is_live, other=0
    )
    num_keys = tl.load(seq_lens + row, mask=is_live, other=0)
    decode_keys, prefill_keys = num_keys, num_keys
    if WINDOW > 0:
        decode_keys = tl.minimum(num_keys, WINDOW)
        prefill_keys = tl.minimum(num_keys, WINDOW + BLOCK_Q)
    # A row without keys still has a tile: its output is to be zero.
    decode = tl.where(query_len == 1, tl.maximum((decode_keys + TILE - 1) // TILE, 1), 0)
    prefill = tl.where(query_len > 1, (query_len + BLOCK_Q - 1) // BLOCK_Q, 0)
    walked = tl.where(query_len > 1, (prefill_keys + PREFILL_TILE - 1) // PREFILL_TILE, 0)
    return decode, prefill, walked


@triton.jit
def _attention_balance_kernel(
    query_start_loc,
    seq_lens,
    num_seqs,
    decode_tile_starts,
    stream_rows,
    prefill_item_starts,
    prefill_item_rows,
    prefill_splits,
    prefill_part_starts,
    num_rows,
    max_prefill_items,
    WINDOW: tl.constexpr,  # 0: none
    TILE: tl.constexpr,
    PREFILL_TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    NUM_STREAMS: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,  # key tiles
    BLOCK: tl.constexpr,
    LOOKUPS: tl.constexpr,
    PADDED: tl.constexpr,
):
    live = num_rows
    if PADDED:
        live = tl.minimum(tl.load(num_seqs), num_rows)
    num_decode = 0
    num_walked = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        decode, prefill, walked = _tiles_of_rows(
            row, query_start_loc, seq_lens, live, WINDOW, TILE, PREFILL_TILE, BLOCK_Q
        )
        num_decode += tl.sum(decode, axis=0)
        num_walked += tl.sum(prefill * walked, axis=0)
    share = (num_decode + NUM_STREAMS - 1) // NUM_STREAMS
    # Key tiles of a split, so that the splits of all tiles are about as many as programs run at once.
    longest = tl.maximum((num_walked + NUM_PROGRAMS - 1) // NUM_PROGRAMS, MIN_SPLIT)

    lookup = tl.program_id(0) * LOOKUPS + tl.arange(0, LOOKUPS)
    stream_row = tl.zeros([LOOKUPS], tl.int32)
    item_row = tl.zeros([LOOKUPS], tl.int32)
    decode_before = 0
    items_before = 0
    parts_before = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        decode, prefill, walked = _tiles_of_rows(
            row, query_start_loc, seq_lens, live, WINDOW, TILE, PREFILL_TILE, BLOCK_Q
        )
        splits = tl.maximum((walked + longest - 1) // longest, 1)
        items = prefill * splits
        parts = tl.where(splits > 1, items, 0)
        decode_end = decode_before + tl.cumsum(decode, axis=0)
        items_end = items_before + tl.cumsum(items, axis=0)
        # The row of a tile is the number of rows that end at or before it.
        stream_row += tl.sum((decode_end[None, :] <= (lookup * share)[:, None]).to(tl.int32), axis=1)
        item_row += tl.sum((items_end[None, :] <= lookup[:, None]).to(tl.int32), axis=1)
        if tl.program_id(0) == 0:
            parts_end = parts_before + tl.cumsum(parts, axis=0)
            tl.store(decode_tile_starts + row + 1, decode_end, mask=row < num_rows)
            tl.store(prefill_item_starts + row + 1, items_end, mask=row < num_rows)
            tl.store(prefill_splits + row, splits, mask=row < num_rows)
            tl.store(prefill_part_starts + row, parts_end - parts, mask=row < num_rows)
        decode_before += tl.sum(decode, axis=0)
        items_before += tl.sum(items, axis=0)
        parts_before += tl.sum(parts, axis=0)
    if tl.program_id(0) == 0:
        tl.store(decode_tile_starts, 0)
        tl.store(prefill_item_starts, 0)
    tl.store(stream_rows + lookup, tl.minimum(stream_row, num_rows - 1), mask=lookup < NUM_STREAMS)
    tl.store(prefill_item_rows + lookup, tl.minimum(item_row, num_rows - 1), mask=lookup < max_prefill_items)


def schedule_attention_rows(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    num_seqs: Tensor | None,
    *,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    sliding_window: int | None,
    stream: StreamConfig,
    prefill: PrefillConfig,
) -> AttentionSchedule:
    """Return the schedule of a step of ``num_tokens`` padded tokens; see `dispatch.schedule_attention`."""
    num_rows, device = seq_lens.shape[0], seq_lens.device
    group = num_heads // num_kv_heads
    rows_per_tile = max(prefill.rows, triton.next_power_of_2(group))
    queries_per_tile = rows_per_tile // group
    # Rows of two or more tokens fill their tiles but for one each.
    max_tiles = max(1, num_tokens // queries_per_tile + min(num_rows, num_tokens // 2))
    # Splits are as long as a program's share of all key tiles or longer: they add at most one item per program, and
    # where a row has several they are longer than half a share.
    max_items, max_parts = max_tiles + prefill.num_programs, 2 * prefill.num_programs

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    arrivals = torch.zeros((num_rows + max_parts, num_kv_heads), dtype=torch.int32, device=device)
    schedule = AttentionSchedule(
        num_seqs=num_seqs,
        sliding_window=sliding_window,
        stream=stream,
        prefill=prefill,
        rows_per_tile=rows_per_tile,
        queries_per_tile=queries_per_tile,
        max_prefill_items=max_items,
        decode_tile_starts=integers(num_rows + 1),
        stream_rows=integers(stream.num_streams),
        arrivals=arrivals[:num_rows],
        part_out=floats(stream.num_streams, 2, num_heads, head_dim),
        part_lse=floats(stream.num_streams, 2, num_heads),
        prefill_item_starts=integers(num_rows + 1),
        prefill_item_rows=integers(max_items),
        prefill_splits=integers(num_rows),
        prefill_part_starts=integers(num_rows),
        prefill_arrivals=arrivals[num_rows:],
        prefill_part_out=floats(max_parts, num_kv_heads, rows_per_tile, head_dim),
        prefill_part_lse=floats(max_parts, num_kv_heads, rows_per_tile),
    )
    _attention_balance_kernel[(triton.cdiv(max(max_items, stream.num_streams), _LOOKUPS),)](
        query_start_loc,
        seq_lens,
        seq_lens if num_seqs is None else num_seqs,
        schedule.decode_tile_starts,
        schedule.stream_rows,
        schedule.prefill_item_starts,
        schedule.prefill_item_rows,
        schedule.prefill_splits,
        schedule.prefill_part_starts,
        num_rows,
        max_items,
        WINDOW=sliding_window or 0,
        TILE=stream.tile,
        PREFILL_TILE=prefill.tile,
        BLOCK_Q=queries_per_tile,
        NUM_STREAMS=stream.num_streams,
        NUM_PROGRAMS=prefill.num_programs,
        MIN_SPLIT=triton.cdiv(prefill.min_split, prefill.tile),
        BLOCK=min(_MAX_BLOCK_ROWS, triton.next_power_of_2(num_rows)),
        LOOKUPS=_LOOKUPS,
        PADDED=num_seqs is not None,
        num_warps=8,
    )
    return schedule
