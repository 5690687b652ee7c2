"""What a program of `many_rows.py` does: feeds a ring of stages, multiplies what is in them tile by tile, and leaves results.

Two or three warpgroups multiply, each with 64 rows of a tile and all of its 256 weights; the first of them also starts the
copies that all read, which leaves the registers of a feeding warp to a third warpgroup. Gates and ups of the same outputs
meet in the registers of a thread, and the activation (`many_rows_gates.py`) leaves in place of both.
"""

# Gluon's types do not know its compile-time values.
# pyright: reportAssignmentType=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from quire_kernels.linear.head_rotation import find_rows, leave_heads, split_runs
from quire_kernels.linear.many_rows_gates import join_gates, join_scaled_gates
from quire_kernels.linear.row_factors import (
    add_squares,
    await_factors,
    end_launch,
    leave_factors,
    no_squares,
)
from quire_kernels.linear.tiling import GROUP_ROWS, STEP_INPUTS, TILE_WEIGHTS

ROWS = gl.constexpr(GROUP_ROWS)
WEIGHTS = gl.constexpr(TILE_WEIGHTS)
STEP = gl.constexpr(STEP_INPUTS)
COLUMNS = gl.constexpr(TILE_WEIGHTS // 2)
# Its name in Triton 3.6, and from 3.7 on.
_synchronize = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.constexpr_function
def _product_layout(columns):
    """How a warpgroup holds a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.jit
def _place_of_tile(
    tile, num_rows, num_strips, BLOCK_ROWS: gl.constexpr, BAND: gl.constexpr, TO_AND_FRO: gl.constexpr
):
    """Return the first row and the strip of a tile, whether its inputs are taken from the last to the first, and whether it is
    the first of its rows: bands of row blocks, and within a band strip after strip.

    To and fro, a turn of all programs begins with the inputs, and a band with the strips, that the one before it has ended
    with and left in the second-level cache. All pieces of a tile go the same way.
    """
    num_blocks = gl.cdiv(num_rows, BLOCK_ROWS)
    tiles_of_band = BAND * num_strips
    band = tile // tiles_of_band
    first = band * BAND
    height = gl.minimum(num_blocks - first, BAND)
    rest = tile % tiles_of_band
    strip = rest // height
    backwards = 0
    if TO_AND_FRO:
        strip = gl.where(band % 2 == 1, num_strips - 1 - strip, strip)
        backwards = tile // gl.num_programs(0) % 2
    return (first + rest % height) * BLOCK_ROWS, strip, backwards, rest < height


@gluon.jit
def _extent_of_item(item, num_whole, pieces, num_steps):
    """Return the tile that an item is of, which piece of it, and the first step and the end of that."""
    over = gl.maximum(item - num_whole, 0)
    if item < num_whole:
        tile = item
        piece = 0
        first = 0
        end = num_steps
    else:
        tile = num_whole + over // pieces
        piece = over % pieces
        first = piece * num_steps // pieces
        end = (piece + 1) * num_steps // pieces
    return tile, piece, first, end


@gluon.jit
def _feed(
    boxes, rings, sizes, following, stage, phase,
    WAIT: gl.constexpr, GROUPS: gl.constexpr, GATED: gl.constexpr, BAND: gl.constexpr, TO_AND_FRO: gl.constexpr,
):  # fmt: skip
    """Start the copies of the step that follows into a stage, once that is empty, and return the one after it."""
    x_boxes, weight_boxes = boxes
    x_ring, weight_ring, full, empty = rings
    num_rows, num_strips, num_outputs, num_steps, num_whole, num_items, pieces = sizes
    item, step, end, row, strip, backwards = following
    if step == end:
        item += gl.num_programs(0)
        tile, _piece, step, end = _extent_of_item(item, num_whole, pieces, num_steps)
        row, strip, backwards, _first = _place_of_tile(
            tile, num_rows, num_strips, GROUPS * ROWS, BAND, TO_AND_FRO
        )
    if item < num_items:
        if TO_AND_FRO:
            column = gl.where(backwards == 1, num_steps - 1 - step, step) * STEP
        else:
            column = step * STEP
        ready = full.index(stage)
        if WAIT:
            mbarrier.wait(empty.index(stage), phase)
        mbarrier.expect(ready, 2 * STEP * (GROUPS * ROWS + WEIGHTS))
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                x_boxes, [row + group * ROWS, column], ready, x_ring.index(stage * GROUPS + group)
            )
        weights = weight_ring.index(stage)
        if GATED:
            first = strip * (WEIGHTS // 2)
            tma.async_copy_global_to_shared(
                weight_boxes, [first, column], ready, weights.slice(0, WEIGHTS // 2, 0)
            )
            tma.async_copy_global_to_shared(
                weight_boxes,
                [num_outputs + first, column],
                ready,
                weights.slice(WEIGHTS // 2, WEIGHTS // 2, 0),
            )
        else:
            tma.async_copy_global_to_shared(weight_boxes, [strip * WEIGHTS, column], ready, weights)
    return item, step + 1, end, row, strip, backwards


@gluon.jit
def multiply(
    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
    GROUP: gl.constexpr, GROUPS: gl.constexpr, GATED: gl.constexpr, ADD: gl.constexpr, NORM: gl.constexpr,
    HEADS: gl.constexpr, BAND: gl.constexpr, TO_AND_FRO: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A warpgroup: multiplies its 64 rows of every tile; the first one also feeds all."""
    x_ring, weight_ring, full, empty = rings
    num_rows, num_strips, num_outputs, num_steps, num_whole, num_items, pieces = sizes
    following = (gl.program_id(0), 0, 0, 0, 0, 0)
    if GROUP == 0:
        tile, _piece, first, end = _extent_of_item(gl.program_id(0), num_whole, pieces, num_steps)
        row, strip, backwards, _first = _place_of_tile(
            tile, num_rows, num_strips, GROUPS * ROWS, BAND, TO_AND_FRO
        )
        following = (gl.program_id(0), first, end, row, strip, backwards)
        for ahead in gl.static_range(STAGES):
            following = _feed(
                boxes, rings, sizes, following, ahead, 0, False, GROUPS, GATED, BAND, TO_AND_FRO
            )
    stage = 0
    phase = 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        tile, piece, first, end = _extent_of_item(item, num_whole, pieces, num_steps)
        row, strip, _backwards, is_first = _place_of_tile(
            tile, num_rows, num_strips, GROUPS * ROWS, BAND, TO_AND_FRO
        )
        row += GROUP * ROWS
        if ADD:
            total = _load_residual(out, row, strip, gl.where(piece == 0, num_rows, 0), num_outputs)
        else:
            total = gl.zeros([ROWS, WEIGHTS], gl.float32, _product_layout(WEIGHTS))
        if NORM:
            squares = no_squares(ROWS, STEP)
        else:
            squares = ()
        for step in range(first, end):
            mbarrier.wait(full.index(stage), phase)
            total = warpgroup_mma(
                x_ring.index(stage * GROUPS + GROUP), weight_ring.index(stage).permute((1, 0)), total, is_async=True
            )  # fmt: skip
            total = warpgroup_mma_wait(1, deps=[total])
            if step > first:
                before = gl.where(stage == 0, STAGES - 1, stage - 1)
                mbarrier.arrive(empty.index(before), count=1)
                if GROUP == 0:
                    following = _feed(
                        boxes, rings, sizes, following, before, gl.where(stage == 0, phase ^ 1, phase),
                        True, GROUPS, GATED, BAND, TO_AND_FRO,
                    )  # fmt: skip
            if NORM:  # noqa: SIM102 - a condition of the compiler, and one of the tile
                if is_first:
                    squares = add_squares(squares, x_ring.index(stage * GROUPS + GROUP))
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        if NORM:
            factor = _find_factors(norm, squares, is_first, row, num_steps)
        else:
            factor = ()
        if HEADS[0] > 0:
            found = find_rows(places, row, num_rows, ROWS)
        else:
            found = ()
        total = warpgroup_mma_wait(0, deps=[total])
        before = gl.where(stage == 0, STAGES - 1, stage - 1)
        mbarrier.arrive(empty.index(before), count=1)
        if GROUP == 0:
            following = _feed(
                boxes, rings, sizes, following, before, gl.where(stage == 0, phase ^ 1, phase),
                True, GROUPS, GATED, BAND, TO_AND_FRO,
            )  # fmt: skip
        if HEADS[0] > 0:
            left, right = split_runs(total)
        else:
            left, right = _halves(total)
        if item < num_whole:
            _finish(
                out_boxes, out_ring, out, places, found, factor, left, right, row, strip, GROUP, GATED, NORM, HEADS
            )  # fmt: skip
        else:
            place = (tile - num_whole) * GROUPS + GROUP
            first_part = parts + place.to(gl.int64) * pieces * (ROWS * WEIGHTS)
            part = first_part + piece * (ROWS * WEIGHTS)
            gl.store(_places(part), left)
            gl.store(_places(part + ROWS * COLUMNS), right)
            # Every thread's part must be written before one of them says so.
            _synchronize()
            if gl.atomic_add(arrivals + place, 1, sem="acq_rel") == pieces - 1:
                gl.store(arrivals + place, 0)  # for the next product
                all_left = _merge_parts(first_part, pieces)
                all_right = _merge_parts(first_part + ROWS * COLUMNS, pieces)
                _finish(
                    out_boxes, out_ring, out, places, found, factor, all_left, all_right, row, strip,
                    GROUP, GATED, NORM, HEADS,
                )  # fmt: skip
    tma.store_wait(0)
    if NORM & (GROUP == 0):
        end_launch(norm[1], norm[2])


@gluon.jit
def _find_factors(norm, squares, is_first, row, num_steps):
    """Return what rows are multiplied by; the first tile of theirs is where it comes from."""
    tagged, _launches, tag, eps = norm
    if is_first:
        leave_factors(tagged, squares, row, tag, num_steps * STEP, eps)
    return await_factors(tagged, row, tag, ROWS, gl.SliceLayout(1, _product_layout(COLUMNS)))


@gluon.jit
def _places(half):
    """Where the elements of half of a part lie."""
    LAYOUT: gl.constexpr = _product_layout(COLUMNS)
    rows = gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, LAYOUT))
    return (half + rows * COLUMNS)[:, None] + columns[None, :]


@gluon.jit
def _merge_parts(first_part, pieces):
    """Return the sum of one half of all parts of a tile."""
    total = gl.zeros([ROWS, COLUMNS], gl.float32, _product_layout(COLUMNS))
    for piece in range(pieces):
        total += gl.load(_places(first_part + piece * (ROWS * WEIGHTS)), cache_modifier=".cg")
    return total


@gluon.jit
def _halves(total):
    """Return the first 128 columns of a product, and the others."""
    left, right = total.reshape([ROWS, 2, COLUMNS]).permute([0, 2, 1]).split()
    LAYOUT: gl.constexpr = _product_layout(COLUMNS)
    return gl.convert_layout(left, LAYOUT), gl.convert_layout(right, LAYOUT)


@gluon.jit
def _load_residual(out, row, strip, num_rows, num_outputs):
    """Return what a tile of the output holds."""
    LAYOUT: gl.constexpr = _product_layout(WEIGHTS)
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    columns = strip * WEIGHTS + gl.arange(0, WEIGHTS, gl.SliceLayout(0, LAYOUT))
    place = out + (rows.to(gl.int64) * num_outputs)[:, None] + columns[None, :]
    return gl.load(place, mask=(rows < num_rows)[:, None] & (columns < num_outputs)[None, :], other=0.0).to(
        gl.float32
    )


@gluon.jit
def _finish(
    out_boxes, out_ring, out, places, found, factor, left, right, row, strip,
    GROUP: gl.constexpr, GATED: gl.constexpr, NORM: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    """Store what the halves of a product come to."""
    if HEADS[0] > 0:
        leave_heads(
            out_ring, out, places, left, right, factor, found, strip, GROUP, NORM, HEADS[0], HEADS[1], HEADS[2]
        )  # fmt: skip
    elif GATED:
        if NORM:
            joined = join_scaled_gates(left, right, factor, out_boxes.dtype)
        else:
            joined = join_gates(left, right, out_boxes.dtype)
        _leave(out_boxes, out_ring.index(GROUP), joined, row, strip * COLUMNS)
    else:
        if NORM:
            left *= factor[:, None]
            right *= factor[:, None]
        staged = out_ring.index(GROUP)
        _leave(out_boxes, staged, left.to(out_boxes.dtype), row, strip * WEIGHTS)
        _leave(out_boxes, staged, right.to(out_boxes.dtype), row, strip * WEIGHTS + COLUMNS)


@gluon.jit
def _leave(out_boxes, staged, values, row, column):
    """Store the results of 64 rows by way of shared memory, once what was there before has left it."""
    tma.store_wait(0)
    _synchronize()
    staged.store(values)
    fence_async_shared()
    _synchronize()
    tma.async_copy_shared_to_global(out_boxes, [row, column], staged)
