"""What a program of `tiles_hopper.py` does: copies and multiplies the inputs of a tile step by step, and leaves what comes of it.

Gates and ups of a tile take turns in shared memory, so that the two rows of a product that one thread holds are a gate and
its up. A norm is folded in by halves, as `folding.py` has it.
"""

# Gluon's types do not know its compile-time values.
# pyright: reportAssignmentType=false, reportOperatorIssue=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait

# x / (1 + exp(-x)), without what keeps exp and division exact at the ends of float32's range: half of the instructions of a gate.
_SILU = gl.constexpr(
    """
    {
    .reg .f32 power;
    mul.f32 power, $1, 0fBFB8AA3B;
    ex2.approx.ftz.f32 power, power;
    add.f32 power, power, 0f3F800000;
    rcp.approx.ftz.f32 power, power;
    mul.f32 $0, $1, power;
    }
    """
)


@gluon.constexpr_function
def product_layout(rows, num_warps):
    return gl.NVMMADistributedLayout([3, 0], [num_warps, 1], [16, rows, 16])


@gluon.constexpr_function
def out_layout(results, num_warps):
    """How threads hold what they move to and from memory, 16 bytes each."""
    lanes = results // 8
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [num_warps, 1], [1, 0])


@gluon.constexpr_function
def held_layout(rows, results, dtype):
    if dtype is gl.float32:
        return gl.SwizzledSharedLayout(4, 1, 8, [1, 0])
    return gl.NVMMASharedLayout.get_default_for([rows, results], dtype)


@gluon.jit
def allocate_stages(
    weight_tiles, first_tiles, second_tiles, OUTS: gl.constexpr, FIRST: gl.constexpr, SECOND: gl.constexpr,
    WIDTH: gl.constexpr, STAGES: gl.constexpr, UNROLL: gl.constexpr, GROUP: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Room for the inputs of a step, and what says that they are there, in each stage: in memory of its own where steps are
    written out, so that threads are kept from nothing in one stage by what goes on in another, else in rings."""
    dtype: gl.constexpr = first_tiles.dtype
    RINGS: gl.constexpr = STAGES if UNROLL else 1
    LENGTH: gl.constexpr = 1 if UNROLL else STAGES
    stages = ()
    for _ in gl.static_range(RINGS):
        if GATED:
            weights = gl.allocate_shared_memory(
                dtype, [LENGTH, OUTS // (2 * GROUP), 2, GROUP, WIDTH], weight_tiles.layout
            )
        else:
            weights = gl.allocate_shared_memory(dtype, [LENGTH, OUTS, WIDTH], weight_tiles.layout)
        first = gl.allocate_shared_memory(dtype, [LENGTH, FIRST, WIDTH], first_tiles.layout)
        second = first
        if SECOND > 0:
            second = gl.allocate_shared_memory(dtype, [LENGTH, SECOND, WIDTH], second_tiles.layout)
        full = gl.allocate_shared_memory(gl.int64, [LENGTH, 1], mbarrier.MBarrierLayout())
        stages = stages + ((full, weights, first, second),)  # noqa: RUF005
    return stages


@gluon.jit
def stage_of_step(stages, step, STAGES: gl.constexpr, UNROLL: gl.constexpr):
    """The stage of a step, which is a compile-time value where steps are written out."""
    if UNROLL:
        ring = stages[step % STAGES]
        place = 0
    else:
        ring = stages[0]
        place = step % STAGES
    full, weights, first, second = ring
    return full.index(place), weights.index(place), first.index(place), second.index(place)


@gluon.jit
def copy_weights(weight_tiles, stage, tile, step):
    """Copy the weights of a step; gates and ups of a tile take turns of 8 in shared memory, wherever they lie."""
    full, weights, first, _second = stage
    WIDTH: gl.constexpr = first.shape[1]
    if len(weights.shape) == 4:
        place = [tile * weights.shape[0], 0, 0, step * WIDTH]
    else:
        place = [tile * weights.shape[0], step * WIDTH]
    tma.async_copy_global_to_shared(weight_tiles, place, full, weights)


@gluon.jit
def copy_rows(first_tiles, second_tiles, stage, row, step, SECOND: gl.constexpr):
    """Copy a step's inputs of a tile's rows. Of rows past the end it copies zeros."""
    full, _weights, first, second = stage
    column = step * first.shape[1]
    tma.async_copy_global_to_shared(first_tiles, [row, column], full, first)
    if SECOND > 0:
        tma.async_copy_global_to_shared(second_tiles, [row + first.shape[0], column], full, second)


@gluon.jit
def multiply(total, second_total, stage, phase, OUTS: gl.constexpr, SECOND: gl.constexpr):
    """Start the products of a step and wait for those of the step before."""
    full, weights, first, second = stage
    mbarrier.wait(full, phase)
    left = weights.reshape([OUTS, first.shape[1]])
    total = warpgroup_mma(left, first.permute((1, 0)), total, is_async=True)
    if SECOND > 0:
        second_total = warpgroup_mma(left, second.permute((1, 0)), second_total, is_async=True)
        total, second_total = warpgroup_mma_wait(2, deps=[total, second_total])
    else:
        total = warpgroup_mma_wait(1, deps=[total])
    return total, second_total


@gluon.jit
def take_step(
    total, second_total, tiles, stages, tile, row, step, OUTS: gl.constexpr, SECOND: gl.constexpr, STEPS: gl.constexpr,
    STAGES: gl.constexpr, UNROLL: gl.constexpr, BYTES: gl.constexpr,
):  # fmt: skip
    """Multiply in a step that is not the first; then the products of the one before have ended, and its stage is filled again."""
    stage = stage_of_step(stages, step, STAGES, UNROLL)
    total, second_total = multiply(total, second_total, stage, (step // STAGES) & 1, OUTS, SECOND)
    if step - 1 + STAGES < STEPS:
        weight_tiles, first_tiles, second_tiles = tiles
        ended = stage_of_step(stages, step - 1, STAGES, UNROLL)
        mbarrier.expect(ended[0], BYTES)
        copy_weights(weight_tiles, ended, tile, step - 1 + STAGES)
        copy_rows(first_tiles, second_tiles, ended, row, step - 1 + STAGES, SECOND)
    return total, second_total


@gluon.jit
def _gate(product, GROUP: gl.constexpr):
    """Join gates and ups that take turns."""
    OUTS: gl.constexpr = product.shape[0]
    ROWS: gl.constexpr = product.shape[1]
    pairs = product.reshape([OUTS // (2 * GROUP), 2, GROUP, ROWS]).permute((0, 2, 3, 1))
    gate, up = gl.split(pairs)
    joined = gl.inline_asm_elementwise(_SILU, "=f,f", [gate], dtype=gl.float32, is_pure=True, pack=1) * up
    return joined.reshape([OUTS // 2, ROWS])


@gluon.jit
def _addresses(
    out, row, tile, num_rows, num_outputs, ROWS: gl.constexpr, RESULTS: gl.constexpr, LAYOUT: gl.constexpr
):
    place = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    column = tile * RESULTS + gl.arange(0, RESULTS, gl.SliceLayout(0, LAYOUT))
    return out + place[:, None] * num_outputs + column[None, :], (place < num_rows)[:, None]


@gluon.jit
def load_addend(held, out, row, tile, num_rows, num_outputs, LAYOUT: gl.constexpr, ADD: gl.constexpr):
    ROWS: gl.constexpr = held.shape[0]
    RESULTS: gl.constexpr = held.shape[1]
    addend = gl.zeros([ROWS, RESULTS], held.dtype, LAYOUT)
    if ADD:
        address, live = _addresses(out, row, tile, num_rows, num_outputs, ROWS, RESULTS, LAYOUT)
        addend = gl.load(address, mask=live, other=0.0)
    return addend


@gluon.constexpr_function
def squares_layout(num_tiles, num_warps):
    """How threads hold the squares of rows, 16 bytes each."""
    lanes = min(num_tiles // 4, 32)
    return gl.BlockedLayout([1, 4], [32 // lanes, lanes], [num_warps, 1], [1, 0])


@gluon.jit
def load_squares(
    squares, factors, row, num_rows, TILES: gl.constexpr, SPAN: gl.constexpr, LAYOUT: gl.constexpr
):
    """The squares of a tile's rows; none of a row past the end, whose product is zero."""
    ROWS: gl.constexpr = factors.shape[0]
    held = gl.zeros([ROWS, SPAN], gl.float32, LAYOUT)
    if TILES > 0:
        place = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))[:, None]
        tile = gl.arange(0, SPAN, gl.SliceLayout(0, LAYOUT))[None, :]
        live = (place < num_rows) & (tile < TILES)
        held = gl.load(squares + place * TILES + tile, mask=live, other=0.0)
    return held


@gluon.jit
def store_factors(factors, squares, eps, NUM_INPUTS: gl.constexpr):
    """Leave each row's factor in shared memory. The sum must stay within a warp: one across warps would be given memory of
    the first steps, which products may still read.
    """
    factors.store(gl.rsqrt(gl.sum(squares, axis=1) / NUM_INPUTS + eps))


@gluon.jit
def load_bias(
    bias, tile, num_outputs, OUTS: gl.constexpr, GROUP: gl.constexpr, HAS_BIAS: gl.constexpr, GATED: gl.constexpr,
    LAYOUT: gl.constexpr,
):  # fmt: skip
    """What is added to the product by each of a tile's weights; gates and ups take turns, as their weights do."""
    loaded = gl.zeros([OUTS], gl.float32, LAYOUT)
    if HAS_BIAS:
        place = gl.arange(0, OUTS, LAYOUT)
        output = tile * OUTS + place
        if GATED:
            gate = tile * (OUTS // 2) + place // (2 * GROUP) * GROUP + place % GROUP
            output = gate + place // GROUP % 2 * num_outputs
        loaded = gl.load(bias + output).to(gl.float32)
    return loaded


@gluon.jit
def hold(
    product, factors, bias, held, HAS_BIAS: gl.constexpr, GATED: gl.constexpr, GROUP: gl.constexpr, TILES: gl.constexpr
):  # fmt: skip
    """Leave a product in shared memory, where rows come to lie as they do in ``out``."""
    PRODUCT: gl.constexpr = product.type.layout
    if TILES > 0:
        product *= factors.load(gl.SliceLayout(0, PRODUCT))[None, :]
    if HAS_BIAS:
        product += gl.convert_layout(bias, gl.SliceLayout(1, PRODUCT))[:, None]
    if GATED:
        product = _gate(product, GROUP)
    held.permute((1, 0)).store(product.to(held.dtype))


@gluon.jit
def store(
    held, addend, out, squares, row, tile, num_rows, num_outputs, ADD: gl.constexpr, NORM: gl.constexpr
):  # fmt: skip
    """Store what is held; with a norm to come also the sum of squares of each row."""
    ROWS: gl.constexpr = held.shape[0]
    RESULTS: gl.constexpr = held.shape[1]
    LAYOUT: gl.constexpr = addend.type.layout
    result = held.load(LAYOUT)
    if ADD:
        result = (result + addend.to(gl.float32)).to(out.dtype.element_ty)
    address, live = _addresses(out, row, tile, num_rows, num_outputs, ROWS, RESULTS, LAYOUT)
    gl.store(address, result, mask=live)
    if NORM:
        # Of absolute values, which are arithmetic on pairs of 16 bits: where there is any, ptxas 12.8 and 13.1 choose the thread
        # that copies once, not for every copy anew, and 139 instructions come before the first copy instead of 366.
        values = gl.abs(result).to(gl.float32)
        place = row + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
        sums = gl.sum(values * values, axis=1)
        gl.store(squares + place * gl.num_programs(0) + tile, sums, mask=place < num_rows)
