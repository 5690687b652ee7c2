"""Cuts the prefill attention of one step into equal work, on the device, in one launch that any CUDA graph can hold.

The launch depends on the number of table rows and of padded tokens alone. Rows are counted in blocks: every program
adds up the tiles of all rows (a few loads), then looks up the rows of its own run of items, and writes down all that
attention must know of these: a program there reads an item in one load.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.attention.tuning import PrefillConfig
from quire_kernels.cut import cdiv, next_power_of_2

_LOOKUPS = 32  # items that one program writes down
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
    SHORTEST: tl.constexpr,
):
    """Return the tiles of each row, and the key tiles that one of these walks."""
    live = row < num_rows
    query_len = tl.load(query_start_loc + row + 1, mask=live, other=0) - tl.load(
        query_start_loc + row, mask=live, other=0
    )
    num_keys = tl.load(seq_lens + row, mask=live, other=0)
    if WINDOW > 0:
        num_keys = tl.minimum(num_keys, WINDOW + BLOCK_Q)
    tiles = tl.where(query_len >= SHORTEST, (query_len + BLOCK_Q - 1) // BLOCK_Q, 0)
    walked = tl.where(query_len >= SHORTEST, (num_keys + TILE - 1) // TILE, 0)
    return tiles, walked


@triton.jit(do_not_specialize=["num_notes"])  # one binary for steps of any number of tokens
def _schedule_prefill_rows_kernel(
    query_start_loc,
    seq_lens,
    num_items,
    items,
    num_rows,
    num_notes,
    WINDOW: tl.constexpr,  # 0: none
    TILE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    SHORTEST: tl.constexpr,  # query tokens of a row that has tiles
    NUM_PROGRAMS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,  # key tiles
    BLOCK: tl.constexpr,
    LOOKUPS: tl.constexpr,
):
    num_walked = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        tiles, walked = _tiles_of_rows(
            row, query_start_loc, seq_lens, num_rows, WINDOW, TILE, BLOCK_Q, SHORTEST
        )
        num_walked += tl.sum(tiles * walked, axis=0)
    # Key tiles of a split, so that the splits of all tiles are about as many as programs run at once.
    longest = tl.maximum((num_walked + NUM_PROGRAMS - 1) // NUM_PROGRAMS, MIN_SPLIT)

    item = tl.program_id(0) * LOOKUPS + tl.arange(0, LOOKUPS)
    row_of_item = tl.zeros([LOOKUPS], tl.int32)
    first_item = tl.zeros([LOOKUPS], tl.int32)  # of the item's row
    first_part = tl.zeros([LOOKUPS], tl.int32)
    items_before = 0
    for begin in range(0, num_rows, BLOCK):
        row = begin + tl.arange(0, BLOCK)
        tiles, walked = _tiles_of_rows(
            row, query_start_loc, seq_lens, num_rows, WINDOW, TILE, BLOCK_Q, SHORTEST
        )
        splits = tl.maximum((walked + longest - 1) // longest, 1)
        num = tiles * splits
        parts = tl.where(splits > 1, num, 0)
        # The row of an item is the number of rows that end at or before it.
        before = (items_before + tl.cumsum(num, axis=0))[None, :] <= item[:, None]
        row_of_item += tl.sum(before.to(tl.int32), axis=1)
        first_item += tl.sum(tl.where(before, num[None, :], 0), axis=1)
        first_part += tl.sum(tl.where(before, parts[None, :], 0), axis=1)
        items_before += tl.sum(num, axis=0)
    if tl.program_id(0) == 0:
        tl.store(num_items, items_before)

    row = tl.minimum(row_of_item, num_rows - 1)
    _tiles, walked = _tiles_of_rows(row, query_start_loc, seq_lens, num_rows, WINDOW, TILE, BLOCK_Q, SHORTEST)
    splits = tl.maximum((walked + longest - 1) // longest, 1)
    first_token = tl.load(query_start_loc + row)
    query_len = tl.load(query_start_loc + row + 1) - first_token
    num_cached = tl.load(seq_lens + row) - query_len
    tile = (item - first_item) // splits
    # The last tiles of a prompt see the most keys: they come first, which leaves the short ones to fill the end.
    live = item < items_before
    place = tl.where(live, items_before - 1 - item, item)
    numbers = items + place * 8
    mask = (item < num_notes) & (place < num_notes)
    tl.store(numbers, tl.where(live, row, -1), mask=mask)
    tl.store(numbers + 1, first_token, mask=mask)
    tl.store(numbers + 2, query_len, mask=mask)
    tl.store(numbers + 3, num_cached, mask=mask)
    tl.store(numbers + 4, tile, mask=mask)
    tl.store(numbers + 5, splits, mask=mask)
    tl.store(numbers + 6, (item - first_item) % splits, mask=mask)
    tl.store(numbers + 7, first_part + tile * splits, mask=mask)


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
    rows_per_tile = max(config.rows, next_power_of_2(group))
    queries_per_tile = rows_per_tile // (next_power_of_2(group) if config.hopper else group)
    # Rows fill their tiles but for one each.
    max_tiles = max(1, num_tokens // queries_per_tile + min(num_rows, num_tokens // config.shortest))
    # Splits are as long as a program's share of all key tiles or longer: they add at most one item per program, and
    # where a row has several they are longer than half a share.
    max_items, max_parts = max_tiles + config.num_programs, 2 * config.num_programs
    # Programs of `prefill_hopper` take items, of all key heads, until they find none: each finds one behind the last item.
    num_notes = max_items + cdiv(config.resident_programs, num_kv_heads) + 1

    def integers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def floats(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=device)

    counters_per_part = cdiv(rows_per_tile, _MIN_WARPGROUP_ROWS)
    counters = integers(max_parts * num_kv_heads * counters_per_part + 2).zero_()
    schedule = PrefillSchedule(
        sliding_window=sliding_window,
        config=config,
        rows_per_tile=rows_per_tile,
        queries_per_tile=queries_per_tile,
        max_items=max_items,
        num_items=integers(1),
        items=integers(num_notes, 8),
        arrivals=counters[:-2].view(max_parts, num_kv_heads, counters_per_part),
        taken=counters[-2:],
        part_out=floats(max_parts, num_kv_heads, rows_per_tile, head_dim),
        part_lse=floats(max_parts, num_kv_heads, rows_per_tile),
    )
    _schedule_prefill_rows_kernel[(cdiv(num_notes, _LOOKUPS),)](
        query_start_loc,
        seq_lens,
        schedule.num_items,
        schedule.items,
        num_rows,
        num_notes,
        WINDOW=sliding_window or 0,
        TILE=config.tile,
        BLOCK_Q=queries_per_tile,
        SHORTEST=config.shortest,
        NUM_PROGRAMS=config.num_programs,
        MIN_SPLIT=cdiv(config.min_split, config.tile),
        BLOCK=min(_MAX_BLOCK_ROWS, next_power_of_2(num_rows)),
        LOOKUPS=_LOOKUPS,
        num_warps=8,
    )
    return schedule
