"""What feeds the warpgroups of `prefill_hopper.py`: one warp takes items, and one each copies keys and values, page by page.

Warps hand stages of a ring to one another: its tensor in shared memory, and two barriers for each stage, of which one says
that it is full and the other that all who read it have left it. Rings are passed as triples of these, but those of keys and
values as pairs: they are left together. Phase n of `left`, one barrier a stage for both, is over when the keys of tile n and the
values of tile n - 1 are read; it takes two stages or more. A ring of notes tells
every warp which items its program has, so that the tables are read while an earlier item is still worked on. Knows no
product and no softmax.
"""

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.language.extra.cuda import gdc_wait

NOTE_LEN = 8
NOTE_READERS = gl.constexpr(4)  # two warpgroups, two warps that copy
_NOTE_LEN = gl.constexpr(NOTE_LEN)
# An item of so many key tiles takes longer than the next one's note; shorter ones are noted two ahead.
_LONG_ITEM = gl.constexpr(6)
# Key tiles that take as long as it takes a split to leave its part to another.
_AHEAD = gl.constexpr(2)
# The first row of a page past the end: outside of every cache, where copies read zeros.
_NOWHERE = gl.constexpr(0x7FFFFF00)


@gluon.constexpr_function
def _whole_note(num_warps):
    """Every thread holds all of a note."""
    return gl.BlockedLayout([8], [32], [num_warps], [0])


@gluon.jit
def stage_and_phase(turn, STAGES: gl.constexpr):
    """Return the stage of a ring that serves a turn, and the phase in which it is full."""
    return turn % STAGES, (turn // STAGES) & 1


@gluon.jit
def hand_out_items(
    notes, taken, items, NUM_KV_HEADS: gl.constexpr, WINDOW: gl.constexpr, BLOCK_Q: gl.constexpr,
    TILE: gl.constexpr, NOTES: gl.constexpr, OVERLAP: gl.constexpr, SETTLED: gl.constexpr,
):  # fmt: skip
    """Take the program's next item and note what the schedule says of it, until none is left; a negative first number says so.

    The schedule starts with the last tiles of a prompt, which see the most keys: the short ones are left to fill the end. Turns
    fixed beforehand took a fifth more time for 4 prompts of 2,048 tokens, as some programs had longer items in every turn. An
    item that is taken early is one that no other program can take: after a long one the next is taken when that begins.
    """
    if OVERLAP and not SETTLED:
        gdc_wait()
    ring, full, empty = notes
    column = gl.arange(0, _NOTE_LEN, gl.BlockedLayout([1], [32], [1], [0]))
    index = gl.program_id(0)
    turn = 0
    long = 0
    more = 1
    while more > 0:
        stage, phase = stage_and_phase(turn, NOTES)
        mbarrier.wait(empty.index(stage), phase ^ 1)
        before, phase = stage_and_phase(turn - 1, NOTES)
        mbarrier.wait(empty.index(before), phase, pred=long > 0)
        if turn > 0:
            index = gl.num_programs(0) + gl.atomic_add(taken, 1, sem="relaxed")
        item = items + index // NUM_KV_HEADS * _NOTE_LEN
        note = gl.load(item + column)
        # Behind the last item the row is negative.
        place = gl.where(note >= 0, note * NUM_KV_HEADS + index % NUM_KV_HEADS, -1)
        ring.index(stage).store(gl.where(column == 0, place, note))
        mbarrier.arrive(full.index(stage), count=1)
        more = (gl.load(item) >= 0).to(gl.int32)
        query_len = gl.load(item + 2)
        num_cached = gl.load(item + 3)
        tile_of_row = gl.load(item + 4)
        num_splits = gl.load(item + 5)
        split = gl.load(item + 6)
        _keys, _begin, num_tiles = range_of_keys(
            query_len, num_cached, tile_of_row, num_splits, split, WINDOW, BLOCK_Q, TILE
        )
        long = (num_tiles >= _LONG_ITEM).to(gl.int32)
        if SETTLED:
            gdc_wait()  # for the kernels that counted before; nothing from the second turn on
        turn += 1
    if gl.atomic_add(taken + 1, 1, sem="acq_rel") == gl.num_programs(0) - 1:
        gl.store(taken, 0)  # for the next layer
        gl.store(taken + 1, 0)


@gluon.jit
def read_note(notes, turn, NUM_KV_HEADS: gl.constexpr, NOTES: gl.constexpr):
    """Return whether there is an item, key head, sequence, first token, query length, cached keys, tile, number of splits,
    split, and first part.
    """
    LAYOUT: gl.constexpr = _whole_note(gl.num_warps())
    ring, full, empty = notes
    stage, phase = stage_and_phase(turn, NOTES)
    mbarrier.wait(full.index(stage), phase)
    note = ring.index(stage).load(LAYOUT)
    column = gl.arange(0, _NOTE_LEN, LAYOUT)
    numbers = ()
    for index in gl.static_range(_NOTE_LEN):
        numbers = numbers + (gl.sum(gl.where(column == index, note, 0), 0),)  # noqa: RUF005
    mbarrier.arrive(empty.index(stage), count=1)
    return (
        numbers[0] >= 0, numbers[0] % NUM_KV_HEADS, numbers[0] // NUM_KV_HEADS, numbers[1], numbers[2], numbers[3],
        numbers[4], numbers[5], numbers[6], numbers[7],
    )  # fmt: skip


@gluon.jit
def range_of_keys(
    query_len, num_cached, tile_of_row, num_splits, split,
    WINDOW: gl.constexpr, BLOCK_Q: gl.constexpr, TILE: gl.constexpr,
):  # fmt: skip
    """Return the end of the keys that an item may see, the first key that it walks, and how many tiles."""
    first_query = tile_of_row * BLOCK_Q
    num_keys = num_cached + gl.minimum(first_query + BLOCK_Q, query_len)
    begin = 0
    if WINDOW > 0:
        begin = gl.maximum(num_cached + first_query + 1 - WINDOW, 0) // TILE * TILE
    num_tiles = gl.cdiv(num_keys - begin, TILE)
    if num_splits > 1:
        # The first split merges, and need not wait long where it has more to do.
        others = gl.maximum(gl.cdiv(num_tiles - _AHEAD, num_splits), 1)
        first = gl.maximum(num_tiles - (num_splits - 1) * others, 1)
        before = gl.where(split > 0, first + (split - 1) * others, 0)
        begin += before * TILE
        # An empty split walks one tile, all of it masked.
        num_tiles = gl.maximum(gl.minimum(gl.where(split > 0, others, first), num_tiles - before), 1)
    return num_keys, begin, num_tiles


@gluon.jit
def copy_tiles(
    q_pages, pages, queries, tiles, left, notes, block_tables, block_table_stride, rows_per_block, head_stride,
    WITH_QUERIES: gl.constexpr, WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr, PAGE: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr, TILE: gl.constexpr, STAGES: gl.constexpr,
    Q_STAGES: gl.constexpr, NOTES: gl.constexpr, OVERLAP: gl.constexpr, SETTLED: gl.constexpr,
):  # fmt: skip
    """Copy keys or values of every item, and with the keys its queries, as soon as a stage of the ring is empty.

    Where the tables and the keys of earlier positions are settled, the first of these are copied while the kernel before runs.
    """
    if OVERLAP and not SETTLED:
        gdc_wait()
    gl.static_assert(STAGES > 1)
    ring, full = tiles
    HEAD_DIM: gl.constexpr = ring.shape[2]
    done = 0
    turn = 0
    may_be_early = STAGES if SETTLED else 0
    more, kv_head, sequence, first_token, query_len, num_cached, tile_of_row, num_splits, split, _part = (
        read_note(notes, turn, NUM_KV_HEADS, NOTES)
    )
    while more:
        num_keys, begin, num_tiles = range_of_keys(
            query_len, num_cached, tile_of_row, num_splits, split, WINDOW, BLOCK_Q, TILE
        )
        table_row = block_tables + sequence.to(gl.int64) * block_table_stride
        blocks = _blocks_of_pages(table_row, begin, num_keys, BLOCK_SIZE, PAGE, TILE)
        num_early = -1
        if may_be_early > 0:
            num_early = gl.minimum(
                gl.maximum(num_cached - begin, 0) // TILE, gl.minimum(num_tiles - 1, may_be_early)
            )
        elif WITH_QUERIES:
            _copy_queries(
                q_pages, queries, turn, first_token + tile_of_row * BLOCK_Q, kv_head * GROUP, BLOCK_Q, Q_STAGES
            )  # fmt: skip
        for tile in range(num_tiles):
            start = begin + tile * TILE
            if tile == num_early:
                gdc_wait()
                if WITH_QUERIES:
                    _copy_queries(
                        q_pages, queries, turn, first_token + tile_of_row * BLOCK_Q, kv_head * GROUP, BLOCK_Q, Q_STAGES
                    )  # fmt: skip
            # The table is read one tile ahead, and its loads wait for one another no more than they must.
            following = _blocks_of_pages(table_row, start + TILE, num_keys, BLOCK_SIZE, PAGE, TILE)
            # The tile that was in the stage before; values are left with the keys of the next one.
            leaving = done - STAGES if WITH_QUERIES else done - STAGES + 1
            stage, phase = stage_and_phase(leaving, STAGES)
            mbarrier.wait(left.index(stage), phase, pred=done >= STAGES)
            stage, phase = stage_and_phase(done, STAGES)
            mbarrier.expect(full.index(stage), TILE * HEAD_DIM * 2)
            for page in gl.static_range(TILE // PAGE):
                key = start + page * PAGE
                row = gl.where(key < num_keys, blocks[page] * rows_per_block + key % BLOCK_SIZE, _NOWHERE)
                tma.async_copy_global_to_shared(
                    pages,
                    [row, kv_head * head_stride],
                    full.index(stage),
                    ring.index(stage).slice(page * PAGE, PAGE, 0),
                )
            blocks = following
            done += 1
        turn += 1
        may_be_early = 0
        more, kv_head, sequence, first_token, query_len, num_cached, tile_of_row, num_splits, split, _part = (
            read_note(notes, turn, NUM_KV_HEADS, NOTES)
        )


@gluon.jit
def _copy_queries(q_pages, queries, turn, token, head, BLOCK_Q: gl.constexpr, Q_STAGES: gl.constexpr):
    """Copy the queries of an item, one half of its tokens for each warpgroup."""
    ring, full, empty = queries
    stage, phase = stage_and_phase(turn, Q_STAGES)
    mbarrier.wait(empty.index(stage), phase ^ 1)
    BYTES: gl.constexpr = 4 * ring.shape[1] * ring.shape[2] * ring.shape[3]
    mbarrier.expect(full.index(stage), BYTES)
    for half in gl.static_range(2):
        tma.async_copy_global_to_shared(
            q_pages, [token + half * (BLOCK_Q // 2), head, 0], full.index(stage), ring.index(2 * stage + half)
        )


@gluon.jit
def _blocks_of_pages(
    table_row, start, num_keys, BLOCK_SIZE: gl.constexpr, PAGE: gl.constexpr, TILE: gl.constexpr
):
    """Return the cache block of each page of the tile from ``start``; 0 for pages past the end."""
    blocks = ()
    for page in gl.static_range(TILE // PAGE):
        key = start + page * PAGE
        blocks = blocks + (gl.load(table_row + key // BLOCK_SIZE, mask=key < num_keys, other=0),)  # noqa: RUF005
    return blocks
