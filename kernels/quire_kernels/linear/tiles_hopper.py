"""Products of some tens to hundreds of rows on Hopper, whose first weights are there before their input is.

Truth: `linear/reference.py`. A program computes a tile: some outputs of some rows. Weights are the left operand and rows
the right one, whose number need not be a multiple of 64. The weights of the first steps are copied before the kernel
that makes the input has ended, the rows after it; each step then starts its products and has the stage of the step
before filled again. A bias, the gate of the activation and the addition to the residual are folded in.

So is the norm between a sum and the next product: what adds to the residual also leaves the sum of squares of each row of its
tile; the next product, of the residual itself, multiplies each of its rows by what they come to.

Knows Hopper alone, 16-bit tensors and whole tiles of outputs (`can_multiply`). Gluon is an experiment of Triton's:
whoever imports this module must be ready for an ImportError or AttributeError.
"""

# Gluon's types do not know its compile-time values.
# pyright: reportAssignmentType=false, reportOperatorIssue=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire_kernels.box_descriptor import describe_boxes
from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.linear.boxes import misfit_of_boxes
from quire_kernels.linear.folding import allocate_results, check_product
from quire_kernels.linear.hopper_tile import (
    allocate_stages,
    copy_rows,
    copy_weights,
    held_layout,
    hold,
    load_addend,
    load_bias,
    load_squares,
    multiply,
    out_layout,
    product_layout,
    squares_layout,
    stage_of_step,
    store,
    store_factors,
    take_step,
)
from quire_kernels.linear.tuning import TilesConfig, tiles_config
from quire_kernels.overlap import launch_options, overlaps_launches

_WEIGHTS = 128  # whose number every tile divides
_MAX_WIDTH = 128
_GROUP = 8  # outputs whose gates and ups take turns: the two rows of a product that one thread holds are so far apart
_SHARED_BYTES = 225 << 10


# One kernel serves every number of rows of a tile's size.
@gluon.jit(do_not_specialize=["num_rows"])
def _linear_tiles_hopper_kernel(
    weight_tiles,  # descriptors: weight [N, K], gated ones as [N / 8, 2, 8, K]; rows [T, K] in two boxes
    first_tiles,
    second_tiles,
    bias,  # [N] or, of gates and then of ups, [2 N]; used when HAS_BIAS
    out,  # [T, N]
    squares,  # [T, programs] float32, written when NORM; [T, TILES], read when TILES > 0
    num_rows,
    num_outputs,
    eps,
    OUTS: gl.constexpr,  # weight rows of a tile
    FIRST: gl.constexpr,  # rows of a tile: a power of two, and perhaps another
    SECOND: gl.constexpr,
    WIDTH: gl.constexpr,
    STEPS: gl.constexpr,
    STAGES: gl.constexpr,
    UNROLL: gl.constexpr,
    GROUP: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    GATED: gl.constexpr,
    ADD: gl.constexpr,
    NORM: gl.constexpr,
    TILES: gl.constexpr,
    TILES_SPAN: gl.constexpr,  # a power of two
    OVERLAP: gl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
    WARPS: gl.constexpr = gl.num_warps()
    ROWS: gl.constexpr = FIRST + SECOND
    RESULTS: gl.constexpr = OUTS // 2 if GATED else OUTS
    STEP_BYTES: gl.constexpr = 2 * WIDTH * (OUTS + ROWS)
    dtype: gl.constexpr = first_tiles.dtype
    tile = gl.program_id(0)
    row = gl.program_id(1) * ROWS
    # Sums are held in float32, so that 4 rows of 8 outputs, as a warp has them, are in banks of their own.
    HELD_TYPE: gl.constexpr = gl.float32 if ADD else dtype
    HELD: gl.constexpr = held_layout(FIRST, RESULTS, HELD_TYPE)
    first_held = gl.allocate_shared_memory(HELD_TYPE, [FIRST, RESULTS], HELD)
    FACTORS: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    first_factors = gl.allocate_shared_memory(gl.float32, [FIRST], FACTORS)
    second_held, second_factors = first_held, first_factors
    if SECOND > 0:
        second_held = gl.allocate_shared_memory(HELD_TYPE, [SECOND, RESULTS], HELD)
        second_factors = gl.allocate_shared_memory(gl.float32, [SECOND], FACTORS)
    stages = allocate_stages(
        weight_tiles, first_tiles, second_tiles, OUTS, FIRST, SECOND, WIDTH, STAGES, UNROLL, GROUP, GATED
    )
    for early in gl.static_range(STAGES):
        mbarrier.init(stage_of_step(stages, early, STAGES, UNROLL)[0], count=1)
    fence_async_shared()
    for early in gl.static_range(STAGES):
        mbarrier.expect(stage_of_step(stages, early, STAGES, UNROLL)[0], STEP_BYTES)
    for early in gl.static_range(STAGES):
        copy_weights(weight_tiles, stage_of_step(stages, early, STAGES, UNROLL), tile, early)
    OUT: gl.constexpr = out_layout(RESULTS, WARPS)
    PRODUCT: gl.constexpr = product_layout(FIRST, WARPS)
    biases = load_bias(bias, tile, num_outputs, OUTS, GROUP, HAS_BIAS, GATED, gl.SliceLayout(1, PRODUCT))
    if OVERLAP:
        gdc_wait()
    for early in gl.static_range(STAGES):
        copy_rows(first_tiles, second_tiles, stage_of_step(stages, early, STAGES, UNROLL), row, early, SECOND)
    SQUARES: gl.constexpr = squares_layout(TILES_SPAN, WARPS)
    first_squares = load_squares(squares, first_factors, row, num_rows, TILES, TILES_SPAN, SQUARES)
    second_squares = first_squares
    first_addend = load_addend(first_held, out, row, tile, num_rows, num_outputs, OUT, ADD)
    second_addend = first_addend
    first_total = gl.zeros([OUTS, FIRST], gl.float32, PRODUCT)
    second_total = first_total
    if SECOND > 0:
        second_squares = load_squares(
            squares, second_factors, row + FIRST, num_rows, TILES, TILES_SPAN, SQUARES
        )
        second_addend = load_addend(second_held, out, row + FIRST, tile, num_rows, num_outputs, OUT, ADD)
        second_total = gl.zeros([OUTS, SECOND], gl.float32, product_layout(SECOND, WARPS))

    first_total, second_total = multiply(
        first_total, second_total, stage_of_step(stages, 0, STAGES, UNROLL), 0, OUTS, SECOND
    )
    if TILES > 0:  # while the first products are made
        store_factors(first_factors, first_squares, eps, STEPS * WIDTH)
        if SECOND > 0:
            store_factors(second_factors, second_squares, eps, STEPS * WIDTH)
    tiles = (weight_tiles, first_tiles, second_tiles)
    if UNROLL:
        for step in gl.static_range(1, STEPS):
            first_total, second_total = take_step(
                first_total, second_total, tiles, stages, tile, row, step, OUTS, SECOND, STEPS, STAGES, UNROLL, STEP_BYTES
            )  # fmt: skip
    else:
        for step in range(1, STEPS):
            first_total, second_total = take_step(
                first_total, second_total, tiles, stages, tile, row, step, OUTS, SECOND, STEPS, STAGES, UNROLL, STEP_BYTES
            )  # fmt: skip
    if SECOND > 0:
        first_total, second_total = warpgroup_mma_wait(0, deps=[first_total, second_total])
        hold(second_total, second_factors, biases, second_held, HAS_BIAS, GATED, GROUP, TILES)
    else:
        first_total = warpgroup_mma_wait(0, deps=[first_total])
    hold(first_total, first_factors, biases, first_held, HAS_BIAS, GATED, GROUP, TILES)
    store(first_held, first_addend, out, squares, row, tile, num_rows, num_outputs, ADD, NORM)
    if SECOND > 0:
        store(second_held, second_addend, out, squares, row + FIRST, tile, num_rows, num_outputs, ADD, NORM)


def linear_tiles_hopper(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    gated: bool = False,
    add: bool = False,
    leave_squares: bool = False,
    squares: Tensor | None = None,
    eps: float = 0.0,
    config: TilesConfig | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]``, in ``out`` (contiguous) where it is given; ``gated``, ``add``,
    ``leave_squares``, ``squares`` and ``eps`` are those of `rows.linear_rows`.

    Weights and bias must have been written before the kernel ahead of this one began, as they are read before that ends.
    Raises ``ValueError`` on shapes, strides or types that do not fit, and on what does not go together.
    """
    num_rows, num_inputs = x.shape
    num_outputs = check_product(
        x, weight, bias, out, gated=gated, add=add, leave_squares=leave_squares, squares=squares
    )
    if reason := _misfit(x, weight):
        raise ValueError(reason)
    config = config or tiles_config(num_rows, num_outputs, num_inputs, gated=gated)
    width_of_tile = config.outs // 2 if gated else config.outs
    if num_outputs % width_of_tile:
        raise ValueError(f"weight has {num_outputs} outputs; they must be whole tiles of {width_of_tile}")
    num_tiles = num_outputs // width_of_tile
    results = allocate_results(
        x, num_outputs, num_tiles, out=out, leave_squares=leave_squares, squares=squares
    )
    first, second = boxes(config.rows)
    width, steps = config.width, num_inputs // config.width
    held = (first + second) * (width_of_tile * (4 if add else 2) + 4)
    stages = config.num_stages or (_SHARED_BYTES - held) // (2 * width * (config.outs + first + second))
    if stages < min(2, steps):  # the second step would wait for a stage that nobody fills
        raise ValueError(
            f"{config} leaves memory for {stages} of {steps} steps at a time; it must be 2 at least"
        )
    overlap = overlaps_launches(x.device)
    first_tiles = describe_boxes(x, list(x.shape), list(x.stride()), [first, width])
    _linear_tiles_hopper_kernel[(num_tiles, cdiv(num_rows, first + second))](
        _describe_weight(weight, config, gated),
        first_tiles,
        describe_boxes(x, list(x.shape), list(x.stride()), [second, width]) if second else first_tiles,
        results.out if bias is None else bias,
        results.out,
        results.squares,
        num_rows,
        num_outputs,
        eps,
        OUTS=config.outs,
        FIRST=first,
        SECOND=second,
        WIDTH=width,
        STEPS=steps,
        STAGES=min(steps, stages),
        UNROLL=config.unroll,
        GROUP=_GROUP,
        HAS_BIAS=bias is not None,
        GATED=gated,
        ADD=add,
        NORM=results.leaves_squares,
        TILES=results.num_tiles,
        TILES_SPAN=max(4, next_power_of_2(results.num_tiles)),
        OVERLAP=overlap,
        num_warps=config.outs // 16,
        **launch_options(overlap),
    )
    return results.returned()


def can_multiply(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes tensors like these: 16-bit ones whose rows lie as TMA has it, and whole tiles."""
    return _misfit(x, weight) is None


def _misfit(x: Tensor, weight: Tensor) -> str | None:
    """Why the kernel does not take these tensors, or None."""
    if reason := misfit_of_boxes(x, weight):
        return reason
    num_weights, num_inputs = weight.shape
    if num_weights % _WEIGHTS:
        return f"weight has {num_weights} rows; they must be whole tiles of {_WEIGHTS}"
    if num_inputs % _MAX_WIDTH:
        return f"weight has {num_inputs} inputs; they must be whole tiles of {_MAX_WIDTH}"
    return None


def boxes(num_rows: int) -> tuple[int, int]:
    """Cut the rows of a tile, a multiple of 16, into a power of two and, where that leaves less to waste, a smaller one."""
    first = 1 << (num_rows.bit_length() - 1)
    if num_rows == first:
        return first, 0
    second = 1 << (num_rows - first - 1).bit_length()
    return (2 * first, 0) if second == first else (first, second)


def _describe_weight(weight: Tensor, config: TilesConfig, gated: bool) -> TensorDescriptor:
    """Describe a weight ``[N, K]``; gates and ups, which it holds one after another, as pairs of groups."""
    num_outputs, num_inputs = weight.shape
    stride = weight.stride(0)
    if not gated:
        return describe_boxes(weight, [num_outputs, num_inputs], [stride, 1], [config.outs, config.width])
    half = num_outputs // 2
    return describe_boxes(
        weight,
        [half // _GROUP, 2, _GROUP, num_inputs],
        [_GROUP * stride, half * stride, stride, 1],
        [config.outs // (2 * _GROUP), 2, _GROUP, config.width],
    )
