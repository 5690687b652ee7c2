"""Cuts the prefill attention of one step into equal work, on the device, in one launch that any CUDA graph can hold.

The launch depends on the number of table rows and of padded tokens alone. Rows are counted in blocks: every program
adds up the tiles of all rows (a few loads), then looks up the rows of its own run of items.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.attention.tuning import PrefillConfig

_LOOKUPS = 32  # items whose row one program looks up
_MAX_BLOCK_ROWS = 1024
_MIN_WARPGROUP_ROWS = 64  # that merge their parts apart from the others of a tile


@triton.jit
def _tiles_of_rows(
    row,
    query_start_loc,
    seq_lens,
    num_rows,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Return the tiles of each row, and the key tiles that one of these walks."""
    live = row < num_rows
    query_len = tl.load(query_start_loc + row + 1, mask=live, other=0) - tl.load(
        query_start_loc + row, mask=live, other=0
    )
    num_keys = tl.load(seq_lens + row, mask=live, other=0)
    if WINDOW > 0:
        num_keys = tl.minimum(num_keys, WINDOW + BLOCK_Q)
    tiles = tl.where(query_len > 1, (query_len + BLOCK_Q - 1) // BLOCK_Q, 0)
    walked = tl.where(query_len > 1, (num_keys + TILE - 1) // TILE, 0)
    return tiles, walked


@triton.jit
def _schedule_prefill_rows_kernel(
    query_start_loc,
    seq_lens,
    item_starts,
    item_rows,
    row_splits,
    part_starts,
    num_rows,
    max_items,
    WINDOW: tl.constexpr,  # 0: none
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,  # key tiles
    BLOCK: tl.constexpr,
    LOOKUPS: tl.constexpr,
):
    num_walked = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        tiles, walked = _tiles_of_rows(row, query_start_loc, seq_lens, num_rows, WINDOW, TILE, BLOCK_Q)
        num_walked += tl.sum(tiles * walked, axis=0)
    # Key tiles of a split, so that the splits of all tiles are about as many as programs run at once.
    longest = tl.maximum((num_walked + NUM_PROGRAMS - 1) // NUM_PROGRAMS, MIN_SPLIT)

    lookup = tl.program_id(0) * LOOKUPS + tl.arange(0, LOOKUPS)
    item_row = tl.zeros([LOOKUPS], tl.int32)
    items_before = 0
    parts_before = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        tiles, walked = _tiles_of_rows(row, query_start_loc, seq_lens, num_rows, WINDOW, TILE, BLOCK_Q)
        splits = tl.maximum((walked + longest - 1) // longest, 1)
        items = tiles * splits
        parts = tl.where(splits > 1, items, 0)
        items_end = items_before + tl.cumsum(items, axis=0)
        # The row of an item is the number of rows that end at or before it.
        item_row += tl.sum((items_end[None, :] <= lookup[:, None]).to(tl.int32), axis=1)
        if tl.program_id(0) == 0:
            parts_end = parts_before + tl.cumsum(parts, axis=0)
            tl.store(item_starts + row + 1, items_end, mask=row < num_rows)
            tl.store(row_splits + row, splits, mask=row < num_rows)
            tl.store(part_starts + row, parts_end - parts, mask=row < num_rows)
        items_before += tl.sum(items, axis=0)
        parts_before += tl.sum(parts, axis=0)
    if tl.program_id(0) == 0:
        tl.store(item_starts, 0)
    tl.store(item_rows + lookup, tl.minimum(item_row, num_rows - 1), mask=lookup < max_items)


def schedule_prefill_rows(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    sliding_window: int | None,
    config: PrefillConfig,
) -> PrefillSchedule:
    """Return the schedule of a step of ``num_tokens`` padded tokens; see `dispatch.schedule_prefill`."""
    num_rows, device = seq_lens.shape[0], seq_lens.device
    group = num_heads // num_kv_heads
    rows_per_tile = max(config.rows, triton.next_power_of_2(group))
    queries_per_tile = rows_per_tile // (triton.next_power_of_2(group) if config.hopper else group)
    # Rows of two or more tokens fill their tiles but for one each.
    max_tiles = max(1, num_tokens // queries_per_tile + min(num_rows, num_tokens // 2))
    # Splits are as long as a program's share of all key tiles or longer: they add at most one item per program, and
    # where a row has several they are longer than half a share.
    max_items, max_parts = max_tiles + config.num_programs, 2 * config.num_programs

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    counters_per_part = triton.cdiv(rows_per_tile, _MIN_WARPGROUP_ROWS)
    counters = integers(max_parts * num_kv_heads * counters_per_part + 2).zero_()
    schedule = PrefillSchedule(
        sliding_window=sliding_window,
        config=config,
        rows_per_tile=rows_per_tile,
        queries_per_tile=queries_per_tile,
        max_items=max_items,
        item_starts=integers(num_rows + 1),
        item_rows=integers(max_items),
        splits=integers(num_rows),
        part_starts=integers(num_rows),
        arrivals=counters[:-2].view(max_parts, num_kv_heads, counters_per_part),
        taken=counters[-2:],
        part_out=floats(max_parts, num_kv_heads, rows_per_tile, head_dim),
        part_lse=floats(max_parts, num_kv_heads, rows_per_tile),
    )
    _schedule_prefill_rows_kernel[(triton.cdiv(max_items, _LOOKUPS),)](
        query_start_loc,
        seq_lens,
        schedule.item_starts,
        schedule.item_rows,
        schedule.splits,
        schedule.part_starts,
        num_rows,
        max_items,
        WINDOW=sliding_window or 0,
        TILE=config.tile,
        BLOCK_Q=queries_per_tile,
        NUM_PROGRAMS=config.num_programs,
        MIN_SPLIT=triton.cdiv(config.min_split, config.tile),
        BLOCK=min(_MAX_BLOCK_ROWS, triton.next_power_of_2(num_rows)),
        LOOKUPS=_LOOKUPS,
        num_warps=8,
    )
    return schedule
