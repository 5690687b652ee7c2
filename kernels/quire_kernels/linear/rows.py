"""Triton products of a few rows (2 to 64), bound like that of one row by reading the weight once. Truth:
`linear/reference.py`.

A program computes a strip of outputs for all rows. Its weights are asked for before the kernel that makes the input has
ended: between the kernels of a step the memory would else be idle for microseconds, which is what the library's
products lose. Where there are few strips, the inputs are split as well: each split leaves a part, and the program that
comes last adds up the parts, in their order. Within a program each warp may take a share of the inputs for all outputs,
instead of a share of the outputs; what the warps have is added up at the end. What follows is folded in (`linear/folding.py`).
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.linear.folding import (
    allocate_results,
    check_product,
    load_squares,
    store_results,
    sum_of_shares,
)
from quire_kernels.linear.tuning import RowsConfig, rows_config
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    prefetch,
    wait_for_inputs,
)

_LINE = 64  # elements of two bytes in a line of the cache
_MAX_STRIPS = 4096


@triton.jit
def _with_outputs_last(weights):
    return tl.permute(weights, (1, 0)) if len(weights.shape) == 2 else tl.permute(weights, (0, 2, 1))


@triton.jit
def _linear_rows_kernel(
    x,  # [num_rows, K]
    weight,  # [N, K], or [2 N, K] with the gates first
    bias,
    out,  # [num_rows, N]
    squares,  # [num_rows, strips] float32, written when NORM; [num_rows, TILES], read when TILES > 0
    parts,  # [SPLITS, 1 or 2, ROWS, N] float32, used when SPLITS > 1
    arrivals,  # [strips], zero before and after
    num_rows,
    num_outputs,
    x_row_stride,
    weight_stride,
    eps,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    SPAN: tl.constexpr,
    SHARES: tl.constexpr,  # of the inputs of a pass, each for a warp; 1: the warps share the outputs
    SPLITS: tl.constexpr,
    ROTATE: tl.constexpr,  # strips begin at different inputs: not all programs ask for the same ones at a time
    AHEAD: tl.constexpr,  # inputs whose weights are asked for early
    LINE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    NORM: tl.constexpr,
    TILES: tl.constexpr,
    TILES_SPAN: tl.constexpr,  # a power of two
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    output = tl.program_id(0) * STRIP + tl.arange(0, STRIP)
    in_strip = output < num_outputs
    # Strips that reach past the end read its last weight again, so that no load of weights needs a mask.
    start_of_output = weight + tl.minimum(output, num_outputs - 1).to(tl.int64) * weight_stride
    up_after_gate = tl.cast(num_outputs, tl.int64) * weight_stride
    length: tl.constexpr = tl.cdiv(tl.cdiv(K, SPAN), SPLITS) * SPAN
    first = tl.program_id(1) * length
    end = tl.minimum(first + length, K)
    passes = tl.cdiv(end - first, SPAN)
    turn = tl.program_id(0) % tl.maximum(passes, 1) * SPAN if ROTATE else 0
    if OVERLAP:
        early = first + turn + tl.arange(0, AHEAD // LINE) * LINE
        if ROTATE:
            early = tl.where(early < end, early, tl.maximum(early - passes * SPAN, first))
        early = tl.minimum(early, K - 1)[None, :]
        prefetch(start_of_output[:, None] + early)
        if GATED:
            prefetch(start_of_output[:, None] + up_after_gate + early)
    wait_for_inputs(OVERLAP)

    row = tl.arange(0, ROWS)
    live = (row < num_rows)[:, None]
    if SHARES == 1:
        place = tl.arange(0, SPAN)[None, :]
        start_of_input, live_input = x + row[:, None] * x_row_stride, live
        start_of_output = start_of_output[:, None]
        total = tl.zeros([ROWS, STRIP], tl.float32)
    else:
        share = tl.arange(0, SHARES)[:, None, None]
        place = share * (SPAN // SHARES) + tl.arange(0, SPAN // SHARES)[None, None, :]
        start_of_input, live_input = x + row[None, :, None] * x_row_stride, live[None, :, :]
        start_of_output = start_of_output[None, :, None]
        total = tl.zeros([SHARES, ROWS, STRIP], tl.float32)
    total_up = total
    target = row[:, None] * num_outputs + output[None, :]
    mask = live & in_strip[None, :]
    row_squares = total
    if TILES > 0:
        row_squares = load_squares(squares, row, num_rows, TILES, TILES_SPAN)
    if ADD:
        # Asked for with the first inputs; whoever writes there has waited for the first split.
        addend = tl.load(out + target, mask=mask & (tl.program_id(1) == 0), other=0.0).to(tl.float32)
    for start in range(first, end, SPAN):
        if ROTATE:
            turned = start + turn
            column = tl.where(turned < end, turned, turned - passes * SPAN) + place
        else:
            column = start + place
        if K % SPAN == 0:
            inputs = tl.load(start_of_input + column, mask=live_input, other=0.0)
            weights = tl.load(start_of_output + column)
        else:
            inputs = tl.load(start_of_input + column, mask=live_input & (column < K), other=0.0)
            weights = tl.load(start_of_output + column, mask=column < K, other=0.0)
        total = tl.dot(inputs, _with_outputs_last(weights), acc=total, input_precision=PRECISION)
        if GATED:
            if K % SPAN == 0:
                ups = tl.load(start_of_output + up_after_gate + column)
            else:
                ups = tl.load(start_of_output + up_after_gate + column, mask=column < K, other=0.0)
            total_up = tl.dot(inputs, _with_outputs_last(ups), acc=total_up, input_precision=PRECISION)
    if SHARES > 1:
        total = sum_of_shares(total)
        if GATED:
            total_up = sum_of_shares(total_up)
    if ADD:
        total += addend
    if SPLITS > 1:
        part_size = ROWS * num_outputs * (2 if GATED else 1)
        mine = parts + tl.program_id(1) * part_size + target
        tl.store(mine, total, mask=mask)
        if GATED:
            tl.store(mine + ROWS * num_outputs, total_up, mask=mask)
        # Every thread's part must be written before one of them says so.
        tl.debug_barrier()
        arrival = arrivals + tl.program_id(0)
        if tl.atomic_add(arrival, 1, sem="acq_rel") != SPLITS - 1:
            return
        tl.store(arrival, 0)  # for the next product
        total = tl.zeros([ROWS, STRIP], tl.float32)
        total_up = tl.zeros([ROWS, STRIP], tl.float32)
        for split in tl.static_range(SPLITS):
            part = parts + split * part_size + target
            total += tl.load(part, mask=mask, other=0.0, cache_modifier=".cg")
            if GATED:
                total_up += tl.load(part + ROWS * num_outputs, mask=mask, other=0.0, cache_modifier=".cg")
    store_results(
        total,
        total_up,
        row_squares,
        bias,
        out,
        squares,
        row,
        output,
        num_rows,
        num_outputs,
        eps,
        K=K,
        HAS_BIAS=HAS_BIAS,
        GATED=GATED,
        NORM=NORM,
        TILES=TILES,
    )


def linear_rows(
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
    config: RowsConfig | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]`` of few rows, in ``out`` (contiguous) where it is given.

    ``gated`` takes the first half of the outputs as gate of the second (``silu(gate) * up``); ``add`` adds to what
    ``out`` holds. Products on one device must not run at the same time: they share the counters by which the last part
    of a strip knows itself. Raises ``ValueError`` on unfit shapes, strides or types, and on what does not go together.

    To ``leave_squares``, a sum returns, instead of ``out``, ``squares [T, tiles]`` float32, the sum of squares of each tile of a
    row of ``out``. Given that ``out`` as ``x`` with these ``squares`` and a norm's ``eps``, the next product is that of the
    norm: its results are scaled in float32, before they are rounded, and are no larger than those of normed rows.
    """
    num_rows, num_inputs = x.shape
    num_outputs = check_product(
        x, weight, bias, out, gated=gated, add=add, leave_squares=leave_squares, squares=squares
    )
    config = config or rows_config(num_rows, num_outputs, num_inputs, gated=gated)
    rows = max(16, next_power_of_2(num_rows))
    strips = cdiv(num_outputs, config.strip)
    results = allocate_results(x, num_outputs, strips, out=out, leave_squares=leave_squares, squares=squares)
    parts = arrivals = results.out
    if config.splits > 1:
        if strips > _MAX_STRIPS:
            raise ValueError(f"{num_outputs} outputs are {strips} strips; at most {_MAX_STRIPS} can be split")
        size = config.splits * (2 if gated else 1) * rows * num_outputs
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
        arrivals = _arrivals(x.device)
    overlap = overlaps_launches(x.device)
    per_split = cdiv(cdiv(num_inputs, config.span), config.splits) * config.span
    _linear_rows_kernel[(strips, config.splits)](
        x,
        weight,
        x if bias is None else bias,
        results.out,
        results.squares,
        parts,
        arrivals,
        num_rows,
        num_outputs,
        x.stride(0),
        weight.stride(0),
        eps,
        K=num_inputs,
        ROWS=rows,
        STRIP=config.strip,
        SPAN=config.span,
        SHARES=config.shares,
        SPLITS=config.splits,
        ROTATE=config.rotate,
        AHEAD=max(_LINE, next_power_of_2(min(per_split, config.ahead))),
        LINE=_LINE,
        HAS_BIAS=bias is not None,
        GATED=gated,
        ADD=add,
        NORM=results.leaves_squares,
        TILES=results.num_tiles,
        TILES_SPAN=next_power_of_2(max(results.num_tiles, 1)),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        OVERLAP=overlap,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **launch_options(overlap),
    )
    return results.returned()


@cache
def _arrivals(device: torch.device) -> Tensor:
    """Counters of a device, which every product leaves at zero; made before anything is captured."""
    return torch.zeros(_MAX_STRIPS, dtype=torch.int32, device=device)
