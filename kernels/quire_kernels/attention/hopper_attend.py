"""What the warpgroups of `prefill_hopper.py` do: products and softmax of the items that `hopper_feed.py` brings.

Each warpgroup has half of the query rows of an item, keeps them in registers and shares the tiles of keys and values with
the other. It starts the products of a tile's keys and of the values before it in one go, and takes the softmax while the
second of them and the other's run (after FlashAttention-3; Shah et al., 2024). The first keys of an item are multiplied with
the last values of the one before, whose result is written while the other warpgroup multiplies.

From all scores of an item the highest of its first tile is subtracted: in the range of bfloat16 later ones may be 2^64 times as
heavy before anything is lost. So no tile waits for its highest score or rescales what came before; where scores did outgrow
that, which is looked at once an item, the item is done again (`hopper_exact.py`). Where that would happen often the reference
follows the highest score, as is usual: float16 holds less, and a row whose window begins behind the first tile has no score there.
"""

# pyright: reportAssignmentType=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_wait

from quire_kernels.attention.hopper_exact import attend_exactly, has_outgrown
from quire_kernels.attention.hopper_feed import range_of_keys, read_note, stage_and_phase
from quire_kernels.attention.hopper_softmax import (
    LOWEST,
    as_operand,
    hide,
    raise_reference,
    rescale_rows,
    sum_by_thread,
    weigh,
)
from quire_kernels.attention.hopper_warpgroup import WARPGROUP_ROWS, page_layout, product_layout, synchronize

_HALF = gl.constexpr(WARPGROUP_ROWS)
_NEGATIVE_INFINITY = gl.constexpr(-float("inf"))


@gluon.jit
def attend(
    out, part_out, part_lse, arrivals, queries, keys, values, left, notes, totals, score_scale, value_scale,
    caches, tables, exact_rooms, HALF: gl.constexpr, WINDOW: gl.constexpr, BLOCK_SIZE: gl.constexpr, PAGE: gl.constexpr,
    NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, BLOCK_Q: gl.constexpr,
    TILE: gl.constexpr, STAGES: gl.constexpr, Q_STAGES: gl.constexpr, NOTES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """A warpgroup: attends with one half of the rows of each item, and leaves every stage that it has read."""
    HEAD_DIM: gl.constexpr = keys[0].shape[2]
    DTYPE: gl.constexpr = keys[0].dtype
    RESCALES: gl.constexpr = DTYPE == gl.float16 or WINDOW > 0  # noqa: SIM300
    TOKEN_ROWS: gl.constexpr = 2 * _HALF // BLOCK_Q  # the heads of a group, up to a power of two
    O_LAYOUT: gl.constexpr = product_layout(HEAD_DIM)
    s_row = HALF * _HALF + gl.arange(0, _HALF, gl.SliceLayout(1, product_layout(TILE)))
    done = 0
    turn = 0
    (
        more, kv_head, sequence, first_token, query_len, num_cached, tile_of_row, num_splits, split, first_part,
    ) = read_note(notes, turn, NUM_KV_HEADS, NOTES)  # fmt: skip
    num_keys, begin, num_tiles = range_of_keys(
        query_len, num_cached, tile_of_row, num_splits, split, WINDOW, BLOCK_Q, TILE
    )
    position = num_cached + tile_of_row * BLOCK_Q + s_row // TOKEN_ROWS
    q_rows = _take_queries(queries, turn, more, HALF, TILE, Q_STAGES)
    _await_keys(keys, done, more, STAGES)
    scores = _multiply_keys(q_rows, keys, done, STAGES)
    scores = warpgroup_mma_wait(0, deps=[scores])
    mbarrier.arrive(left.index(0), count=1)
    weights, reference, total = _first_softmax(scores, position, begin, score_scale, WINDOW)
    weights = as_operand(weights, DTYPE)
    if OVERLAP:
        gdc_wait()  # for the room that results and parts are written to
    while more:
        first_query = tile_of_row * BLOCK_Q
        accumulated = gl.zeros([_HALF, HEAD_DIM], gl.float32, O_LAYOUT)
        # Tiles that need no mask, as every row sees all of their keys; the first has one anyway.
        num_open = 1
        if WINDOW == 0:
            all_see = num_cached + first_query + HALF * (BLOCK_Q // 2) + 1
            num_open = gl.minimum(gl.maximum((all_see - begin) // TILE, 1), num_tiles)
        for tile in range(1, num_open):
            weights, accumulated, reference, total = _attend_tile(
                q_rows, keys, values, left, totals, weights, accumulated, reference, total, position,
                begin + tile * TILE, done + tile, score_scale, HALF, False, RESCALES, WINDOW, STAGES,
            )  # fmt: skip
        for tile in range(num_open, num_tiles):
            weights, accumulated, reference, total = _attend_tile(
                q_rows, keys, values, left, totals, weights, accumulated, reference, total, position,
                begin + tile * TILE, done + tile, score_scale, HALF, True, RESCALES, WINDOW, STAGES,
            )  # fmt: skip
        # Not one condition: a kernel's `and` looks at both sides.
        if not RESCALES:  # noqa: SIM102
            if num_tiles > 1:  # noqa: SIM102
                if has_outgrown(total, query_len - first_query, HALF, GROUP, TOKEN_ROWS):
                    end = gl.minimum(begin + num_tiles * TILE, num_keys)
                    accumulated, exact_reference, exact_total = attend_exactly(
                        q_rows, position, score_scale, caches, tables, kv_head, sequence, begin, end,
                        exact_rooms.index(HALF), HEAD_DIM, BLOCK_SIZE,
                    )  # fmt: skip
                    total = gl.convert_layout(exact_total, total.type.layout)
                    reference = gl.convert_layout(exact_reference, reference.type.layout)
                    weights = gl.zeros_like(weights)  # of the last values, which are in it
        done += num_tiles
        turn += 1
        last, phase = stage_and_phase(done - 1, STAGES)
        mbarrier.wait(values[1].index(last), phase)
        num_valid = num_keys - begin - (num_tiles - 1) * TILE
        if num_valid < TILE:
            _clear_past_the_end(values[0].index(last), num_valid, PAGE)

        # The next item begins with the products that end this one. Where there is none, its scores mean nothing.
        (
            more, next_kv_head, next_sequence, next_first_token, next_query_len, num_cached, next_tile_of_row,
            next_num_splits, next_split, next_first_part,
        ) = read_note(notes, turn, NUM_KV_HEADS, NOTES)  # fmt: skip
        num_keys, begin, num_tiles = range_of_keys(
            next_query_len, num_cached, next_tile_of_row, next_num_splits, next_split, WINDOW, BLOCK_Q, TILE
        )
        position = num_cached + next_tile_of_row * BLOCK_Q + s_row // TOKEN_ROWS
        q_rows = _take_queries(queries, turn, more, HALF, TILE, Q_STAGES)
        _await_keys(keys, done, more, STAGES)
        scores = _multiply_keys(q_rows, keys, done, STAGES)
        accumulated = warpgroup_mma(weights, values[0].index(last), accumulated, is_async=True)
        scores = warpgroup_mma_wait(1, deps=[scores])
        next_weights, next_reference, next_total = _first_softmax(
            scores, position, begin, score_scale, WINDOW
        )
        accumulated, weights = warpgroup_mma_wait(0, deps=[accumulated, weights])
        mbarrier.arrive(left.index(done % STAGES), count=1)
        _write(
            out, part_out, part_lse, arrivals, accumulated, reference, total, value_scale, kv_head, first_token,
            query_len, first_query, num_splits, split, first_part, HALF, NUM_HEADS, NUM_KV_HEADS, GROUP, TOKEN_ROWS,
        )  # fmt: skip
        weights, reference, total = as_operand(next_weights, DTYPE), next_reference, next_total
        kv_head, sequence, first_token, query_len, tile_of_row = (
            next_kv_head,
            next_sequence,
            next_first_token,
            next_query_len,
            next_tile_of_row,
        )
        num_splits, split, first_part = next_num_splits, next_split, next_first_part


@gluon.jit
def _take_queries(queries, turn, more, HALF: gl.constexpr, TILE: gl.constexpr, Q_STAGES: gl.constexpr):
    """Return the queries of an item, in registers; their place in shared memory is free from then on."""
    ring, full, empty = queries
    stage, phase = stage_and_phase(turn, Q_STAGES)
    mbarrier.wait(full.index(stage), phase, pred=more)
    rows = ring.index(2 * stage + HALF).reshape([_HALF, ring.shape[3]])
    rows = rows.load(gl.DotOperandLayout(0, product_layout(TILE), 2))
    mbarrier.arrive(empty.index(stage), count=1)
    return rows


@gluon.jit
def _await_keys(keys, done, more, STAGES: gl.constexpr):
    """Wait for the keys of a tile, where there is ``more`` to come."""
    stage, phase = stage_and_phase(done, STAGES)
    mbarrier.wait(keys[1].index(stage), phase, pred=more)


@gluon.jit
def _multiply_keys(queries, keys, done, STAGES: gl.constexpr):
    """Start the product of the queries and the keys of a tile."""
    ring = keys[0]
    TILE: gl.constexpr = ring.shape[1]
    zeros = gl.zeros([_HALF, TILE], gl.float32, product_layout(TILE))
    return warpgroup_mma(
        queries, ring.index(done % STAGES).permute((1, 0)), zeros, use_acc=False, is_async=True
    )


@gluon.jit
def _attend_tile(
    queries, keys, values, left, totals, weights, accumulated, reference, total, position, start, done, scale,
    HALF: gl.constexpr, MASKED: gl.constexpr, RESCALES: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start the products of this tile's keys and of the values before it; return the state after this one's softmax."""
    ring, full = values
    before, phase = stage_and_phase(done - 1, STAGES)
    _await_keys(keys, done, True, STAGES)
    mbarrier.wait(full.index(before), phase)
    scores = _multiply_keys(queries, keys, done, STAGES)
    accumulated = warpgroup_mma(weights, ring.index(before), accumulated, is_async=True)
    scores = warpgroup_mma_wait(1, deps=[scores])
    if MASKED:
        scores = hide(scores, position, start, WINDOW)
    before_it = reference
    if RESCALES:
        reference = raise_reference(reference, scores, scale)
        total = rescale_rows(total, gl.exp2(before_it - reference))
    new_weights = weigh(scores, scale, reference)
    total += sum_by_thread(new_weights)
    new_weights = as_operand(new_weights, ring.dtype)
    # Nobody reads these. With the wait behind their store ptxas leaves the softmax before it; else it takes nearly all of it
    # after.
    totals.index(HALF).store(total)
    accumulated, weights = warpgroup_mma_wait(0, deps=[accumulated, weights])
    mbarrier.arrive(left.index(done % STAGES), count=1)
    if RESCALES:
        accumulated = rescale_rows(accumulated, gl.exp2(before_it - reference))
    return new_weights, accumulated, reference, total


@gluon.jit
def _first_softmax(scores, position, start, scale, WINDOW: gl.constexpr):
    """Return weights, reference and total of the rows after the first tile of an item."""
    scores = hide(scores, position, start, WINDOW)
    lowest = gl.full([_HALF], LOWEST, gl.float32, gl.SliceLayout(1, scores.type.layout))
    reference = raise_reference(lowest, scores, scale)
    weights = weigh(scores, scale, reference)
    return weights, reference, sum_by_thread(weights)


@gluon.jit
def _clear_past_the_end(values, num_valid, PAGE: gl.constexpr):
    """Zero the rows of the last page that hold no token: what was left there may be no number, and zero times that is none."""
    if num_valid % PAGE > 0:
        TILE: gl.constexpr = values.shape[0]
        LAYOUT: gl.constexpr = page_layout(values.shape[1])
        for page in gl.static_range(TILE // PAGE):
            if num_valid // PAGE == page:
                part = values.slice(page * PAGE, PAGE, 0)
                row = page * PAGE + gl.arange(0, PAGE, gl.SliceLayout(1, LAYOUT))
                held = part.load(LAYOUT)
                part.store(gl.where((row < num_valid)[:, None], held, gl.zeros_like(held)))
        fence_async_shared()
        synchronize()


@gluon.jit
def _write(
    out, part_out, part_lse, arrivals, accumulated, reference, total, value_scale, kv_head, first_token, query_len,
    first_query, num_splits, split, first_part, HALF: gl.constexpr, NUM_HEADS: gl.constexpr,
    NUM_KV_HEADS: gl.constexpr, GROUP: gl.constexpr, TOKEN_ROWS: gl.constexpr,
):  # fmt: skip
    """Write the result of an item; where it is one of several splits the part, and by the first split the merged result."""
    HEAD_DIM: gl.constexpr = accumulated.shape[1]
    LAYOUT: gl.constexpr = accumulated.type.layout
    ROWS_LAYOUT: gl.constexpr = page_layout(HEAD_DIM)
    reference = gl.convert_layout(reference, gl.SliceLayout(1, LAYOUT))
    total = gl.convert_layout(gl.sum(total, 1), gl.SliceLayout(1, LAYOUT))
    result = accumulated * (value_scale / gl.where(total == 0.0, 1.0, total))[:, None]
    target = (
        out + (first_token.to(gl.int64) + first_query) * (NUM_HEADS * HEAD_DIM) + kv_head * (GROUP * HEAD_DIM)
    )
    num_queries = query_len - first_query
    if num_splits == 1:
        rows = gl.convert_layout(result.to(out.dtype.element_ty), ROWS_LAYOUT)
        _write_rows(target, rows, num_queries, HALF, NUM_HEADS, GROUP, TOKEN_ROWS)
    else:
        row = gl.arange(0, _HALF, gl.SliceLayout(1, LAYOUT))
        lse = reference + gl.log2(total)  # minus infinity where a row saw no key
        first_place = first_part * NUM_KV_HEADS + kv_head
        parts = part_out + first_place * (2 * _HALF * HEAD_DIM) + HALF * (_HALF * HEAD_DIM)
        lses = part_lse + first_place * (2 * _HALF) + HALF * _HALF
        arrival = arrivals + first_place * 2 + HALF
        stride = NUM_KV_HEADS * 2 * _HALF
        if split > 0:
            part = _by_thread(result)
            place = gl.arange(0, _HALF * HEAD_DIM, part.type.layout)
            gl.store(parts + split * stride * HEAD_DIM + place, part)
            gl.store(lses + split * stride + row, lse)
            # Every thread's part must be written before one of them says so.
            synchronize()
            gl.atomic_add(arrival, 1, sem="release")
        else:
            # The schedule gave the other splits out before this one, and there are no more programs than run at once: all of
            # them are done or under way.
            while gl.atomic_add(arrival, 0, sem="acquire") < num_splits - 1:
                pass
            gl.store(arrival, 0)  # for the next layer
            result = _merge_splits(parts, lses, result, lse, stride, num_splits)
            rows = gl.convert_layout(result.to(out.dtype.element_ty), ROWS_LAYOUT)
            _write_rows(target, rows, num_queries, HALF, NUM_HEADS, GROUP, TOKEN_ROWS)


@gluon.jit
def _write_rows(
    target, result, num_queries, HALF: gl.constexpr, NUM_HEADS: gl.constexpr, GROUP: gl.constexpr,
    TOKEN_ROWS: gl.constexpr,
):  # fmt: skip
    """Write rows of queries and heads that exist; ``target`` is where the first row of both halves goes."""
    HEAD_DIM: gl.constexpr = result.shape[1]
    LAYOUT: gl.constexpr = result.type.layout
    row = HALF * _HALF + gl.arange(0, _HALF, gl.SliceLayout(1, LAYOUT))
    dim = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LAYOUT))
    query, head = row // TOKEN_ROWS, row % TOKEN_ROWS
    place = (query * NUM_HEADS + head) * HEAD_DIM
    gl.store(
        target + (place[:, None] + dim[None, :]),
        result,
        mask=((head < GROUP) & (query < num_queries))[:, None],
    )


@gluon.jit
def _merge_splits(parts, lses, result, lse, stride, num_splits):
    """Return the merged output ``[_HALF, HEAD_DIM]`` of the first split of a tile and of those that left parts."""
    HEAD_DIM: gl.constexpr = result.shape[1]
    LAYOUT: gl.constexpr = result.type.layout
    PART_LAYOUT: gl.constexpr = _by_thread(result).type.layout
    row = gl.arange(0, _HALF, lse.type.layout)
    place_in_part = gl.arange(0, _HALF * HEAD_DIM, PART_LAYOUT)
    peak = lse
    total = gl.where(lse == _NEGATIVE_INFINITY, 0.0, 1.0)
    for split in range(1, num_splits):
        other_lse = gl.load(lses + split * stride + row, cache_modifier=".cg")
        part = gl.load(parts + split * stride * HEAD_DIM + place_in_part, cache_modifier=".cg")
        other = _by_row(part, LAYOUT)
        new_peak = gl.maximum(peak, other_lse)
        reference = gl.where(new_peak == _NEGATIVE_INFINITY, 0.0, new_peak)
        weight = gl.exp2(other_lse - reference)
        rescale = gl.exp2(peak - reference)
        total = total * rescale + weight
        result = result * rescale[:, None] + other * weight[:, None]
        peak = new_peak
    return result / gl.where(total == 0.0, 1.0, total)[:, None]


@gluon.jit
def _by_thread(product):
    """A product of 64 rows as a line, in which each thread has 4 numbers on end, those of its neighbours beside them."""
    COLUMNS: gl.constexpr = product.shape[1] // 8
    places = product.reshape([4, 2, 8, COLUMNS, 4, 2]).permute((3, 0, 2, 4, 1, 5))
    return places.reshape([_HALF * product.shape[1]])


@gluon.jit
def _by_row(line, LAYOUT: gl.constexpr):
    """What `_by_thread` was given."""
    COLUMNS: gl.constexpr = line.shape[0] // _HALF // 8
    places = line.reshape([COLUMNS, 4, 8, 4, 2, 2]).permute((1, 4, 2, 0, 3, 5))
    return gl.convert_layout(places.reshape([_HALF, 8 * COLUMNS]), LAYOUT, assert_trivial=True)
