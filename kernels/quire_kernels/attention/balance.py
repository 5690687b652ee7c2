"""Cuts the attention of one step into equal work, on the device, in one launch that any CUDA graph can hold.

The launch depends on the number of table rows and of padded tokens alone. Rows are counted in blocks: every program
adds up the tiles of all rows (a few loads), then looks up the rows of its own run of tiles and streams.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import AttentionSchedule
from quire_kernels.attention.tuning import PrefillConfig, StreamConfig

_LOOKUPS = 32  # tiles and streams whose row one program looks up
_MAX_BLOCK_ROWS = 1024


@triton.jit
def _tiles_of_rows(
    row, query_start_loc, seq_lens, live, WINDOW: tl.constexpr, TILE: tl.constexpr, BLOCK_Q: tl.constexpr
):
    """Return the decode tiles and the prefill tiles of each row; a row has of one kind only."""
    is_live = row < live
    query_len = tl.load(query_start_loc + row + 1, mask=is_live, other=0) - tl.load(
        query_start_loc + row, mask=is_live, other=0
    )
    num_keys = tl.load(seq_lens + row, mask=is_live, other=0)
    if WINDOW > 0:
        num_keys = tl.minimum(num_keys, WINDOW)
    # A row without keys still has a tile: its output is to be zero.
    decode = tl.where(query_len == 1, tl.maximum((num_keys + TILE - 1) // TILE, 1), 0)
    prefill = tl.where(query_len > 1, (query_len + BLOCK_Q - 1) // BLOCK_Q, 0)
    return decode, prefill


@triton.jit
def _attention_balance_kernel(
    query_start_loc,
    seq_lens,
    num_seqs,
    decode_tile_starts,
    stream_rows,
    prefill_tile_starts,
    prefill_tile_rows,
    num_rows,
    max_prefill_tiles,
    WINDOW: tl.constexpr,  # 0: none
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    NUM_STREAMS: tl.constexpr,
    BLOCK: tl.constexpr,
    LOOKUPS: tl.constexpr,
    PADDED: tl.constexpr,
):
    live = num_rows
    if PADDED:
        live = tl.minimum(tl.load(num_seqs), num_rows)
    num_decode = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        decode, _ = _tiles_of_rows(row, query_start_loc, seq_lens, live, WINDOW, TILE, BLOCK_Q)
        num_decode += tl.sum(decode, axis=0)
    share = (num_decode + NUM_STREAMS - 1) // NUM_STREAMS

    lookup = tl.program_id(0) * LOOKUPS + tl.arange(0, LOOKUPS)
    stream_row = tl.zeros([LOOKUPS], tl.int32)
    tile_row = tl.zeros([LOOKUPS], tl.int32)
    decode_before = 0
    prefill_before = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        decode, prefill = _tiles_of_rows(row, query_start_loc, seq_lens, live, WINDOW, TILE, BLOCK_Q)
        decode_end = decode_before + tl.cumsum(decode, axis=0)
        prefill_end = prefill_before + tl.cumsum(prefill, axis=0)
        # The row of a tile is the number of rows that end at or before it.
        stream_row += tl.sum((decode_end[None, :] <= (lookup * share)[:, None]).to(tl.int32), axis=1)
        tile_row += tl.sum((prefill_end[None, :] <= lookup[:, None]).to(tl.int32), axis=1)
        if tl.program_id(0) == 0:
            tl.store(decode_tile_starts + row + 1, decode_end, mask=row < num_rows)
            tl.store(prefill_tile_starts + row + 1, prefill_end, mask=row < num_rows)
        decode_before += tl.sum(decode, axis=0)
        prefill_before += tl.sum(prefill, axis=0)
    if tl.program_id(0) == 0:
        tl.store(decode_tile_starts, 0)
        tl.store(prefill_tile_starts, 0)
    tl.store(stream_rows + lookup, tl.minimum(stream_row, num_rows - 1), mask=lookup < NUM_STREAMS)
    tl.store(prefill_tile_rows + lookup, tl.minimum(tile_row, num_rows - 1), mask=lookup < max_prefill_tiles)


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
    queries_per_tile = prefill_queries_per_tile(prefill, num_heads // num_kv_heads)
    # Rows of two or more tokens fill their tiles but for one each.
    max_tiles = max(1, num_tokens // queries_per_tile + min(num_rows, num_tokens // 2))

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    parts = (stream.num_streams, 2, num_heads)
    schedule = AttentionSchedule(
        num_seqs=num_seqs,
        sliding_window=sliding_window,
        stream=stream,
        prefill=prefill,
        queries_per_tile=queries_per_tile,
        max_prefill_tiles=max_tiles,
        decode_tile_starts=integers(num_rows + 1),
        stream_rows=integers(stream.num_streams),
        prefill_tile_starts=integers(num_rows + 1),
        prefill_tile_rows=integers(max_tiles),
        arrivals=torch.zeros((num_rows, num_kv_heads), dtype=torch.int32, device=device),
        part_out=torch.empty((*parts, head_dim), dtype=torch.float32, device=device),
        part_lse=torch.empty(parts, dtype=torch.float32, device=device),
    )
    _attention_balance_kernel[(triton.cdiv(max(max_tiles, stream.num_streams), _LOOKUPS),)](
        query_start_loc,
        seq_lens,
        seq_lens if num_seqs is None else num_seqs,
        schedule.decode_tile_starts,
        schedule.stream_rows,
        schedule.prefill_tile_starts,
        schedule.prefill_tile_rows,
        num_rows,
        max_tiles,
        WINDOW=sliding_window or 0,
        TILE=stream.tile,
        BLOCK_Q=queries_per_tile,
        NUM_STREAMS=stream.num_streams,
        BLOCK=min(_MAX_BLOCK_ROWS, triton.next_power_of_2(num_rows)),
        LOOKUPS=_LOOKUPS,
        PADDED=num_seqs is not None,
        num_warps=8,
    )
    return schedule


def prefill_queries_per_tile(config: PrefillConfig, group: int) -> int:
    """Return the query tokens of a prefill tile, whose rows are tokens times the ``group`` heads of a key head."""
    return max(config.rows, triton.next_power_of_2(group)) // group
