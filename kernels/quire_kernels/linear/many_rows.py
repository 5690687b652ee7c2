"""Products of many rows on Hopper: a program keeps its multiprocessor and takes output tiles in an order that shares reads.

Truth: `linear/reference.py`. A program is two or three warpgroups (`many_rows_tile.py`). Where the product is gated, half of a
tile's weights are those of gates and half are those of the ups of the same outputs. At full power such products are bound
by the energy of what they move, hence tiles as large as the registers hold. Tiles that would not fill the last turn of all
multiprocessors are cut into pieces of their inputs, and the piece that comes last adds up all, in their order. A norm before
the product is a factor of each row, which the first tile of these rows finds (`row_factors.py`).

Knows Hopper alone and 16-bit tensors (`can_multiply`). Gluon is an experiment of Triton's: whoever imports this module must
be ready for an ImportError or AttributeError.
"""

# pyright: reportAssignmentType=false

from functools import cache

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from quire_kernels.box_descriptor import describe_boxes
from quire_kernels.gpu import num_multiprocessors
from quire_kernels.linear import tiling
from quire_kernels.linear.boxes import misfit_of_boxes
from quire_kernels.linear.head_rotation import HEAD_DIM, allocate_runs
from quire_kernels.linear.many_rows_tile import COLUMNS, ROWS, STEP, WEIGHTS, multiply
from quire_kernels.linear.row_factors import MAX_ROWS, shared_factors
from quire_kernels.linear.tiling import (
    GROUP_ROWS,
    STEP_INPUTS,
    TILE_WEIGHTS,
    ManyRowsConfig,
    cut_tiles,
    many_rows_config,
    suits_many_rows,
)
from quire_kernels.norm.rows import rms_norm_rows
from quire_kernels.overlap import launch_options, overlaps_launches
from quire_kernels.rotary.places import HeadPlaces

_OUT_COLUMNS = TILE_WEIGHTS // 2


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
    factors,  # as `row_factors.py` has them, as is launches; used when NORM
    launches,
    eps,
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
    NORM: gl.constexpr,
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
    x_ring = gl.allocate_shared_memory(dtype, [STAGES * GROUPS, ROWS, STEP], x_boxes.layout)
    weight_ring = gl.allocate_shared_memory(dtype, [STAGES, WEIGHTS, STEP], weight_boxes.layout)
    if NUM_HEADS > 0:
        out_ring = allocate_runs(dtype, GROUPS, ROWS)
    else:
        out_ring = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, COLUMNS], out_boxes.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=GROUPS)
    fence_async_shared()
    boxes = (x_boxes, weight_boxes)
    rings = (x_ring, weight_ring, full, empty)
    sizes = (num_rows, num_strips, num_columns * COLUMNS, num_steps, num_whole, num_items, pieces)
    HEADS: gl.constexpr = (NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE)
    if NUM_HEADS > 0:
        places = (
            cos_sin, positions, slot_mapping, k_cache, v_cache, k_block_stride, k_slot_stride, k_head_stride,
            v_block_stride, v_slot_stride, v_head_stride,
        )  # fmt: skip
    else:
        places = ()
    if NORM:
        norm = (factors, launches, gl.load(launches, volatile=True) + 1, eps)
    else:
        norm = ()
    if GROUPS == 3:
        gl.warp_specialize(
            [
                (multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
                    0, GROUPS, GATED, ADD, NORM, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
                    1, GROUPS, GATED, ADD, NORM, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
                    2, GROUPS, GATED, ADD, NORM, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
            ],
            [4, 4],
            [168, 168],  # registers of a thread; with those of the first warpgroup the whole file
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
                    0, GROUPS, GATED, ADD, NORM, HEADS, BAND, TO_AND_FRO, STAGES,
                )),
                (multiply, (
                    boxes, out_boxes, rings, out_ring, out, parts, arrivals, norm, places, sizes,
                    1, GROUPS, GATED, ADD, NORM, HEADS, BAND, TO_AND_FRO, STAGES,
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
    eps: float | None = None,
    config: ManyRowsConfig | None = None,
) -> Tensor:
    """Return the product of ``x [T, K]`` and ``weight [N, K]``, added to ``out`` where that is asked for; a gated one has a
    ``weight [2 N, K]``, gates first, and returns ``silu(gate) * up`` of both as they would have been stored. With ``eps`` it is
    the product of the RMSNorm of ``x``, by no weight: rows are multiplied by their factors before anything is rounded.

    Products on one device must not run at the same time: they share the counters by which the last piece of a tile knows
    itself, and programs of one that norms wait for each other (`row_factors.py`). Raises ``ValueError`` on tensors that the
    kernel cannot take.
    """
    (num_rows, num_inputs), num_outputs = x.shape, weight.shape[0] // (2 if gated else 1)
    if num_inputs != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (rows, {weight.shape[1]})")
    if reason := _misfit(x, weight, gated=gated):
        raise ValueError(reason)
    if add and (gated or out is None or eps is not None):
        raise ValueError(
            f"add is set with gated={gated}, eps={eps}, out={type(out).__name__}; it needs an out, no gate and no norm"
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
    _launch(x, weight, out, gated=gated, add=add, heads=None, eps=eps, config=config)
    return out


def suits_heads(x: Tensor, weight: Tensor, places: HeadPlaces) -> bool:
    """Whether `linear_many_rows_heads` takes these tensors, and is faster than two kernels."""
    return tiling.suits_heads(x.shape[0], *weight.shape) and misfit_of_heads(x, weight, places) is None


def linear_many_rows_heads(
    x: Tensor,
    weight: Tensor,
    places: HeadPlaces,
    *,
    eps: float | None = None,
    config: ManyRowsConfig | None = None,
) -> Tensor:
    """Return the queries ``[T, Hq D]`` of the product of ``x [T, K]`` and ``weight [(Hq + 2 Hkv) D, K]``, rotated, and write its
    keys and values into the caches, as `rotary.reference.rotary_embedding_and_cache` does with the product as it would have
    been stored; ``eps`` as `linear_many_rows` has it.

    See `linear_many_rows` for what must not run at the same time. Raises ``ValueError`` on tensors that the kernel cannot take.
    """
    if reason := misfit_of_heads(x, weight, places):
        raise ValueError(reason)
    kv_size = places.k_cache.shape[2] * HEAD_DIM
    out = torch.empty((x.shape[0], weight.shape[0] - 2 * kv_size), dtype=x.dtype, device=x.device)
    if x.shape[0] > 0:
        _launch(x, weight, out, gated=False, add=False, heads=places, eps=eps, config=config)
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
    eps: float | None,
    config: ManyRowsConfig | None,
) -> None:
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // (2 if gated else 1)
    num_programs = num_multiprocessors(x.device)
    config = config or many_rows_config(num_rows, gated=gated)
    norms = eps is not None and num_rows <= MAX_ROWS
    if eps is not None and not norms:
        x = rms_norm_rows(x, None, eps)
    tiling = cut_tiles(config, num_rows, num_outputs, num_inputs, num_programs, gated=gated, normed=norms)
    num_parts = (tiling.num_items - tiling.num_whole) * config.groups
    parts = torch.empty((num_parts, GROUP_ROWS, TILE_WEIGHTS), dtype=torch.float32, device=x.device)
    factors, launches = shared_factors(x.device) if norms else (out, out)
    overlap = overlaps_launches(x.device)
    _linear_many_rows_kernel[(min(num_programs, tiling.num_items),)](
        _describe(x, [GROUP_ROWS, STEP_INPUTS]),
        _describe(weight, [TILE_WEIGHTS // 2 if gated else TILE_WEIGHTS, STEP_INPUTS]),
        _describe(out, [GROUP_ROWS, _OUT_COLUMNS]),
        out,
        parts,
        _arrivals(x.device),
        factors,
        launches,
        eps or 0.0,
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
        NORM=norms,
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
    return describe_boxes(tensor, list(tensor.shape), list(tensor.stride()), box)
