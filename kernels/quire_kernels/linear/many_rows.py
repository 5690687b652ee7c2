"""Products of many rows on Hopper: a program keeps its multiprocessor and takes output tiles in an order that shares reads.

Truth: `linear/reference.py`. Two or three warpgroups multiply, each with 64 rows of a tile and all of its 256 weights;
the first of them also starts the copies into a ring of stages that all read, which leaves the registers of a feeding warp
to a third warpgroup. Where the product is gated, half of a tile's weights are those of gates and half are those of the ups
of the same outputs: they meet in the registers of a thread, and the activation leaves in place of both. At full power such
products are bound by the energy of what they move, hence tiles as large as the registers hold. Tiles that would not fill
the last turn of all multiprocessors are cut into pieces of their inputs, and the piece that comes last adds up all, in
their order.

Knows Hopper alone and 16-bit tensors (`can_multiply`). Gluon is an experiment of Triton's: whoever imports this module must
be ready for an ImportError or AttributeError.
"""

# pyright: reportAssignmentType=false

from functools import cache

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire_kernels.gpu import num_multiprocessors
from quire_kernels.linear import tiling
from quire_kernels.linear.boxes import misfit_of_boxes
from quire_kernels.linear.head_rotation import (
    HEAD_DIM,
    allocate_runs,
    find_rows,
    leave_heads,
    split_runs,
)
from quire_kernels.linear.tiling import (
    GROUP_ROWS,
    STEP_INPUTS,
    TILE_WEIGHTS,
    ManyRowsConfig,
    cut_tiles,
    many_rows_config,
    suits_many_rows,
)
from quire_kernels.overlap import launch_options, overlaps_launches
from quire_kernels.rotary.places import HeadPlaces

_OUT_COLUMNS = TILE_WEIGHTS // 2
_ROWS = gl.constexpr(GROUP_ROWS)
_WEIGHTS = gl.constexpr(TILE_WEIGHTS)
_STEP = gl.constexpr(STEP_INPUTS)
_COLUMNS = gl.constexpr(_OUT_COLUMNS)
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
    """Return the first row and the strip of a tile, and whether its inputs are taken from the last to the first: bands of
    row blocks, and within a band strip after strip.

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
    return (first + rest % height) * BLOCK_ROWS, strip, backwards


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
        row, strip, backwards = _place_of_tile(tile, num_rows, num_strips, GROUPS * _ROWS, BAND, TO_AND_FRO)
    if item < num_items:
        if TO_AND_FRO:
            column = gl.where(backwards == 1, num_steps - 1 - step, step) * _STEP
        else:
            column = step * _STEP
        ready = full.index(stage)
        if WAIT:
            mbarrier.wait(empty.index(stage), phase)
        mbarrier.expect(ready, 2 * _STEP * (GROUPS * _ROWS + _WEIGHTS))
        for group in gl.static_range(GROUPS):
            tma.async_copy_global_to_shared(
                x_boxes, [row + group * _ROWS, column], ready, x_ring.index(stage * GROUPS + group)
            )
        weights = weight_ring.index(stage)
        if GATED:
            first = strip * (_WEIGHTS // 2)
            tma.async_copy_global_to_shared(
                weight_boxes, [first, column], ready, weights.slice(0, _WEIGHTS // 2, 0)
            )
            tma.async_copy_global_to_shared(
                weight_boxes,
                [num_outputs + first, column],
                ready,
                weights.slice(_WEIGHTS // 2, _WEIGHTS // 2, 0),
            )
        else:
            tma.async_copy_global_to_shared(weight_boxes, [strip * _WEIGHTS, column], ready, weights)
    return item, step + 1, end, row, strip, backwards


@gluon.jit
def _multiply(
    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
    GROUP: gl.constexpr, GROUPS: gl.constexpr, GATED: gl.constexpr, ADD: gl.constexpr, HEADS: gl.constexpr,
    BAND: gl.constexpr, TO_AND_FRO: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """A warpgroup: multiplies its 64 rows of every tile; the first one also feeds all."""
    x_ring, weight_ring, full, empty = rings
    num_rows, num_strips, num_outputs, num_steps, num_whole, num_items, pieces = sizes
    following = (gl.program_id(0), 0, 0, 0, 0, 0)
    if GROUP == 0:
        tile, _piece, first, end = _extent_of_item(gl.program_id(0), num_whole, pieces, num_steps)
        row, strip, backwards = _place_of_tile(tile, num_rows, num_strips, GROUPS * _ROWS, BAND, TO_AND_FRO)
        following = (gl.program_id(0), first, end, row, strip, backwards)
        for ahead in gl.static_range(STAGES):
            following = _feed(
                boxes, rings, sizes, following, ahead, 0, False, GROUPS, GATED, BAND, TO_AND_FRO
            )
    stage = 0
    phase = 0
    for item in range(gl.program_id(0), num_items, gl.num_programs(0)):
        tile, piece, first, end = _extent_of_item(item, num_whole, pieces, num_steps)
        row, strip, _backwards = _place_of_tile(tile, num_rows, num_strips, GROUPS * _ROWS, BAND, TO_AND_FRO)
        row += GROUP * _ROWS
        if ADD:
            total = _load_residual(out, row, strip, gl.where(piece == 0, num_rows, 0), num_outputs)
        else:
            total = gl.zeros([_ROWS, _WEIGHTS], gl.float32, _product_layout(_WEIGHTS))
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
            stage += 1
            if stage == STAGES:
                stage = 0
                phase ^= 1
        if HEADS[0] > 0:
            found = find_rows(places, row, num_rows, _ROWS)
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
            _finish(out_boxes, out_ring, out, places, found, left, right, row, strip, GROUP, GATED, HEADS)
        else:
            place = (tile - num_whole) * GROUPS + GROUP
            first_part = parts + place.to(gl.int64) * pieces * (_ROWS * _WEIGHTS)
            part = first_part + piece * (_ROWS * _WEIGHTS)
            gl.store(_places(part), left)
            gl.store(_places(part + _ROWS * _COLUMNS), right)
            # Every thread's part must be written before one of them says so.
            _synchronize()
            if gl.atomic_add(arrivals + place, 1, sem="acq_rel") == pieces - 1:
                gl.store(arrivals + place, 0)  # for the next product
                all_left = _merge_parts(first_part, pieces)
                all_right = _merge_parts(first_part + _ROWS * _COLUMNS, pieces)
                _finish(
                    out_boxes, out_ring, out, places, found, all_left, all_right, row, strip, GROUP, GATED, HEADS
                )  # fmt: skip
    tma.store_wait(0)


@gluon.jit
def _places(half):
    """Where the elements of half of a part lie."""
    LAYOUT: gl.constexpr = _product_layout(_COLUMNS)
    rows = gl.arange(0, _ROWS, gl.SliceLayout(1, LAYOUT))
    columns = gl.arange(0, _COLUMNS, gl.SliceLayout(0, LAYOUT))
    return (half + rows * _COLUMNS)[:, None] + columns[None, :]


@gluon.jit
def _merge_parts(first_part, pieces):
    """Return the sum of one half of all parts of a tile."""
    total = gl.zeros([_ROWS, _COLUMNS], gl.float32, _product_layout(_COLUMNS))
    for piece in range(pieces):
        total += gl.load(_places(first_part + piece * (_ROWS * _WEIGHTS)), cache_modifier=".cg")
    return total


@gluon.jit
def _halves(total):
    """Return the first 128 columns of a product, and the others."""
    left, right = total.reshape([_ROWS, 2, _COLUMNS]).permute([0, 2, 1]).split()
    LAYOUT: gl.constexpr = _product_layout(_COLUMNS)
    return gl.convert_layout(left, LAYOUT), gl.convert_layout(right, LAYOUT)


@gluon.jit
def _load_residual(out, row, strip, num_rows, num_outputs):
    """Return what a tile of the output holds."""
    LAYOUT: gl.constexpr = _product_layout(_WEIGHTS)
    rows = row + gl.arange(0, _ROWS, gl.SliceLayout(1, LAYOUT))
    columns = strip * _WEIGHTS + gl.arange(0, _WEIGHTS, gl.SliceLayout(0, LAYOUT))
    place = out + (rows.to(gl.int64) * num_outputs)[:, None] + columns[None, :]
    return gl.load(place, mask=(rows < num_rows)[:, None] & (columns < num_outputs)[None, :], other=0.0).to(
        gl.float32
    )


@gluon.jit
def _gate(gate, up, dtype: gl.constexpr):
    """Return ``silu(gate) * up``, of both as they would have been stored."""
    if dtype == gl.bfloat16:
        # Two at a time: conversions one by one, and exponentials that care for the smallest numbers, take twice as long.
        joined = gl.inline_asm_elementwise(
            """{
            .reg .b32 gates, ups;
            .reg .f32 gate_0, gate_1, up_0, up_1, e_0, e_1;
            cvt.rn.bf16x2.f32 gates, $2, $1;
            cvt.rn.bf16x2.f32 ups, $4, $3;
            shl.b32 gate_0, gates, 16;
            and.b32 gate_1, gates, 0xffff0000;
            shl.b32 up_0, ups, 16;
            and.b32 up_1, ups, 0xffff0000;
            mul.f32 e_0, gate_0, 0fBFB8AA3B;
            mul.f32 e_1, gate_1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 e_0, e_0;
            ex2.approx.ftz.f32 e_1, e_1;
            add.f32 e_0, e_0, 0f3F800000;
            add.f32 e_1, e_1, 0f3F800000;
            rcp.approx.ftz.f32 e_0, e_0;
            rcp.approx.ftz.f32 e_1, e_1;
            mul.f32 e_0, gate_0, e_0;
            mul.f32 e_1, gate_1, e_1;
            mul.f32 e_0, e_0, up_0;
            mul.f32 e_1, e_1, up_1;
            cvt.rn.bf16x2.f32 $0, e_1, e_0;
            }""",
            "=r,f,f,f,f",
            [gate, up],
            dtype=gl.bfloat16,
            is_pure=True,
            pack=2,
        )
    else:
        gate = gate.to(dtype).to(gl.float32)
        joined = (gate * (1 / (1 + gl.exp(-gate))) * up.to(dtype).to(gl.float32)).to(dtype)
    return joined


@gluon.jit
def _finish(
    out_boxes, out_ring, out, places, found, left, right, row, strip,
    GROUP: gl.constexpr, GATED: gl.constexpr, HEADS: gl.constexpr,
):  # fmt: skip
    """Store what the halves of a product come to."""
    if HEADS[0] > 0:
        leave_heads(out_ring, out, places, left, right, found, strip, GROUP, HEADS[0], HEADS[1], HEADS[2])
    elif GATED:
        _leave(out_boxes, out_ring.index(GROUP), _gate(left, right, out_boxes.dtype), row, strip * _COLUMNS)
    else:
        staged = out_ring.index(GROUP)
        _leave(out_boxes, staged, left.to(out_boxes.dtype), row, strip * _WEIGHTS)
        _leave(out_boxes, staged, right.to(out_boxes.dtype), row, strip * _WEIGHTS + _COLUMNS)


@gluon.jit
def _leave(out_boxes, staged, values, row, column):
    """Store the results of 64 rows by way of shared memory, once what was there before has left it."""
    tma.store_wait(0)
    _synchronize()
    staged.store(values)
    fence_async_shared()
    _synchronize()
    tma.async_copy_shared_to_global(out_boxes, [row, column], staged)


# One kernel serves every size.
@gluon.jit(
    do_not_specialize=[
        "num_rows",
        "num_strips",
        "num_columns",
        "num_steps",
        "num_whole",
        "num_items",
        "pieces",
    ]
)
def _linear_many_rows_kernel(
    x_boxes,  # descriptors: [T, K] in boxes of a warpgroup's rows, the weight [N, K], the output [T, N]
    weight_boxes,
    out_boxes,
    out,
    parts,  # [tiles in pieces, GROUPS, pieces, 64, 256] float32
    arrivals,  # [tiles in pieces, GROUPS], zero before and after
    cos_sin,  # of heads, as are all until the strides: [positions, 128] float32
    positions,  # [T]
    slot_mapping,  # [T]
    k_cache,
    v_cache,
    k_block_stride,
    k_slot_stride,
    k_head_stride,
    v_block_stride,
    v_slot_stride,
    v_head_stride,
    num_rows,
    num_strips,
    num_columns,  # of 128 outputs each
    num_steps,
    num_whole,  # tiles
    num_items,
    pieces,
    GROUPS: gl.constexpr,  # warpgroups
    GATED: gl.constexpr,
    ADD: gl.constexpr,
    NUM_HEADS: gl.constexpr,  # 0: the product is not one of heads
    NUM_KV_HEADS: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    BAND: gl.constexpr,
    TO_AND_FRO: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
):
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    dtype: gl.constexpr = x_boxes.dtype
    x_ring = gl.allocate_shared_memory(dtype, [STAGES * GROUPS, _ROWS, _STEP], x_boxes.layout)
    weight_ring = gl.allocate_shared_memory(dtype, [STAGES, _WEIGHTS, _STEP], weight_boxes.layout)
    if NUM_HEADS > 0:
        out_ring = allocate_runs(dtype, GROUPS, _ROWS)
    else:
        out_ring = gl.allocate_shared_memory(dtype, [GROUPS, _ROWS, _COLUMNS], out_boxes.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    fence_async_shared()
    boxes = (x_boxes, weight_boxes)
    rings = (x_ring, weight_ring, full, empty)
    sizes = (num_rows, num_strips, num_columns * _COLUMNS, num_steps, num_whole, num_items, pieces)
    HEADS: gl.constexpr = (NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE)
    if NUM_HEADS > 0:
        places = (
            cos_sin, positions, slot_mapping, k_cache, v_cache, k_block_stride, k_slot_stride, k_head_stride,
            v_block_stride, v_slot_stride, v_head_stride,
        )  # fmt: skip
    else:
        places = ()
    if GROUPS == 3:
        gl.warp_specialize(
            [
                (_multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
                    0, GROUPS, GATED, ADD, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (_multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
                    1, GROUPS, GATED, ADD, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (_multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
                    2, GROUPS, GATED, ADD, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
            ],
            [4, 4],
            [168, 168],  # registers of a thread; with those of the first warpgroup the whole file
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
                    0, GROUPS, GATED, ADD, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (_multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, places, sizes,
                    1, GROUPS, GATED, ADD, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
            ],
            [4],
            [240],
        )  # fmt: skip


def can_multiply(x: Tensor, weight: Tensor, *, gated: bool) -> bool:
    """Whether the kernel takes tensors like these, as TMA has it."""
    return _misfit(x, weight, gated=gated) is None


def _misfit(x: Tensor, weight: Tensor, *, gated: bool) -> str | None:
    """Why the kernel does not take these tensors, or None."""
    if reason := misfit_of_boxes(x, weight):
        return reason
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if num_outputs % _OUT_COLUMNS:
        return f"weight has {num_outputs} outputs; they must be whole tiles of {_OUT_COLUMNS}"
    if weight.shape[1] % STEP_INPUTS:
        return f"weight has {weight.shape[1]} inputs; they must be whole tiles of {STEP_INPUTS}"
    return None


def suits(x: Tensor, weight: Tensor, *, gated: bool = False) -> bool:
    """Whether the kernel takes these tensors, and is faster than the library."""
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    suited = suits_many_rows(x.shape[0], num_outputs, weight.shape[1], gated=gated)
    return suited and can_multiply(x, weight, gated=gated)


def linear_many_rows(
    x: Tensor,
    weight: Tensor,
    *,
    gated: bool = False,
    add: bool = False,
    out: Tensor | None = None,
    config: ManyRowsConfig | None = None,
) -> Tensor:
    """Return the product of ``x [T, K]`` and ``weight [N, K]``, added to ``out`` where that is asked for; a gated one has a
    ``weight [2 N, K]``, gates first, and returns ``silu(gate) * up`` of both as they would have been stored.

    Products on one device must not run at the same time: they share the counters by which the last piece of a tile knows
    itself. Raises ``ValueError`` on tensors that the kernel cannot take.
    """
    (num_rows, num_inputs), num_outputs = x.shape, weight.shape[0] // (2 if gated else 1)
    if num_inputs != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (rows, {weight.shape[1]})")
    if reason := _misfit(x, weight, gated=gated):
        raise ValueError(reason)
    if add and (gated or out is None):
        raise ValueError(
            f"add is set with gated={gated}, out={type(out).__name__}; it needs an out, and no gate"
        )
    if out is not None and out.dtype is not x.dtype:
        raise ValueError(f"out is of {out.dtype}; it must be of {x.dtype}, as x is")
    if out is not None and (out.shape != (num_rows, num_outputs) or not out.is_contiguous()):
        raise ValueError(
            f"out has shape {tuple(out.shape)}; it must be {(num_rows, num_outputs)}, contiguous"
        )
    if out is None:
        out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    if num_rows == 0:
        return out
    _launch(x, weight, out, gated=gated, add=add, heads=None, config=config)
    return out


def suits_heads(x: Tensor, weight: Tensor, places: HeadPlaces) -> bool:
    """Whether `linear_many_rows_heads` takes these tensors, and is faster than two kernels."""
    return tiling.suits_heads(x.shape[0], *weight.shape) and misfit_of_heads(x, weight, places) is None


def linear_many_rows_heads(
    x: Tensor, weight: Tensor, places: HeadPlaces, config: ManyRowsConfig | None = None
) -> Tensor:
    """Return the queries ``[T, Hq D]`` of the product of ``x [T, K]`` and ``weight [(Hq + 2 Hkv) D, K]``, rotated, and write its
    keys and values into the caches, as `rotary.reference.rotary_embedding_and_cache` does with the product as it would have
    been stored.

    See `linear_many_rows` for what must not run at the same time. Raises ``ValueError`` on tensors that the kernel cannot take.
    """
    if reason := misfit_of_heads(x, weight, places):
        raise ValueError(reason)
    kv_size = places.k_cache.shape[2] * HEAD_DIM
    out = torch.empty((x.shape[0], weight.shape[0] - 2 * kv_size), dtype=x.dtype, device=x.device)
    if x.shape[0] > 0:
        _launch(x, weight, out, gated=False, add=False, heads=places, config=config)
    return out


def misfit_of_heads(x: Tensor, weight: Tensor, places: HeadPlaces) -> str | None:
    """Why the kernel does not take these tensors for heads, or None."""
    if reason := _misfit(x, weight, gated=False):
        return reason
    caches = (places.k_cache, places.v_cache)
    for name, held in zip(("k_cache", "v_cache"), caches, strict=True):
        if held.dtype is not x.dtype or held.shape[3] != HEAD_DIM or held.stride(3) != 1:
            return f"{name} is of {held.dtype} and {tuple(held.shape)}; it must be of {x.dtype}, with heads of {HEAD_DIM}"
        if held.data_ptr() % 16 or any(stride % 8 for stride in held.stride()[:3]):
            return f"{name} has strides {held.stride()}; heads must begin at multiples of 16 bytes"
    if places.k_cache.shape != places.v_cache.shape:
        return f"the caches have shapes {tuple(places.k_cache.shape)} and {tuple(places.v_cache.shape)}; they must be alike"
    if weight.shape[0] % TILE_WEIGHTS or weight.shape[0] <= 2 * places.k_cache.shape[2] * HEAD_DIM:
        return f"weight has {weight.shape[0]} outputs; they must be heads of {HEAD_DIM} in pairs, more than the caches have"
    if (
        places.cos_sin.dtype != torch.float32
        or places.cos_sin.shape[1] != HEAD_DIM
        or not places.cos_sin.is_contiguous()
    ):
        return f"cos_sin is {places.cos_sin.dtype} {tuple(places.cos_sin.shape)}; it must be float32, [positions, {HEAD_DIM}]"
    if not places.positions.shape == places.slot_mapping.shape == x.shape[:1]:
        return f"there are {len(places.positions)} positions and {len(places.slot_mapping)} slots for {len(x)} rows"
    return None


def _launch(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    gated: bool,
    add: bool,
    heads: HeadPlaces | None,
    config: ManyRowsConfig | None,
) -> None:
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // (2 if gated else 1)
    num_programs = num_multiprocessors(x.device)
    config = config or many_rows_config(num_rows, gated=gated)
    tiling = cut_tiles(config, num_rows, num_outputs, num_inputs, num_programs, gated=gated)
    num_parts = (tiling.num_items - tiling.num_whole) * config.groups
    parts = torch.empty((num_parts, GROUP_ROWS, TILE_WEIGHTS), dtype=torch.float32, device=x.device)
    overlap = overlaps_launches(x.device)
    _linear_many_rows_kernel[(min(num_programs, tiling.num_items),)](
        _describe(x, [GROUP_ROWS, STEP_INPUTS]),
        _describe(weight, [TILE_WEIGHTS // 2 if gated else TILE_WEIGHTS, STEP_INPUTS]),
        _describe(out, [GROUP_ROWS, _OUT_COLUMNS]),
        out,
        parts,
        _arrivals(x.device),
        *_tell(heads, out),
        num_rows,
        tiling.num_strips,
        num_outputs // _OUT_COLUMNS,
        num_inputs // STEP_INPUTS,
        tiling.num_whole,
        tiling.num_items,
        tiling.num_pieces,
        GROUPS=config.groups,
        GATED=gated,
        ADD=add,
        NUM_HEADS=0 if heads is None else out.shape[1] // HEAD_DIM,
        NUM_KV_HEADS=0 if heads is None else heads.k_cache.shape[2],
        BLOCK_SIZE=0 if heads is None else heads.k_cache.shape[1],
        BAND=config.band,
        TO_AND_FRO=config.to_and_fro,
        STAGES=config.num_stages,
        OVERLAP=overlap,
        num_warps=4,
        **launch_options(overlap),
    )


def _tell(heads: HeadPlaces | None, out: Tensor) -> tuple[Tensor | int, ...]:
    """What the kernel reads of places; of none what keeps its signature."""
    if heads is None:
        return (out,) * 5 + (0,) * 6
    return (
        heads.cos_sin,
        heads.positions,
        heads.slot_mapping,
        heads.k_cache,
        heads.v_cache,
        *heads.k_cache.stride()[:3],
        *heads.v_cache.stride()[:3],
    )


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Counters of a device, which every product leaves at zero; made before anything is captured."""
    return torch.zeros(4 * num_multiprocessors(device), dtype=torch.int32, device=device)


def _describe(tensor: Tensor, box: list[int]) -> TensorDescriptor:
    element = gl.bfloat16 if tensor.dtype == torch.bfloat16 else gl.float16
    return TensorDescriptor(
        tensor,
        list(tensor.shape),
        list(tensor.stride()),
        box,
        gl.NVMMASharedLayout.get_default_for(box, element),
    )
