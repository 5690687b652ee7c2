"""Triton products of few rows by small weights, which are in registers before the input is there. Truth: `linear/reference.py`.

A program computes a strip of outputs for up to 16 rows (or 32), by all inputs, and loads its weights whole while the kernel
that makes the input still runs: from then on a product of a small model is bound by waits, one after another, not by what
it reads. So its inputs are asked for at once as well, and each warp takes a share of them for all outputs, by which no warp
reads another's and sums are short; the shares are added up through shared memory, in their order. What follows is folded in
(`linear/folding.py`).
"""

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
from quire_kernels.linear.tuning import HeldConfig, held_config
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)


# One kernel serves every number of rows of its programs.
@triton.jit(do_not_specialize=["num_rows"])
def _linear_held_rows_kernel(
    x,  # [num_rows, K]
    weight,  # [N, K]
    bias,
    out,  # [num_rows, N]
    squares,  # [num_rows, strips] float32, written when NORM; [num_rows, TILES], read when TILES > 0
    num_rows,
    num_outputs,
    x_row_stride,
    weight_stride,
    eps,
    K: tl.constexpr,  # whole chunks
    CHUNK: tl.constexpr,  # inputs of a load, a power of two
    ROWS: tl.constexpr,
    STRIP: tl.constexpr,
    SHARES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
    start_of_output = weight + tl.minimum(output, num_outputs - 1).to(tl.int64)[None, :, None] * weight_stride
    share = tl.arange(0, SHARES)[:, None, None]
    place = share * (CHUNK // SHARES) + tl.arange(0, CHUNK // SHARES)[None, None, :]
    weights = ()
    for chunk in tl.static_range(K // CHUNK):
        weights = weights + (tl.load(start_of_output + chunk * CHUNK + place),)  # noqa: RUF005
    wait_for_inputs(OVERLAP)

    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    live = (row < num_rows)[None, :, None]
    start_of_input = x + row[None, :, None] * x_row_stride
    inputs = ()
    for chunk in tl.static_range(K // CHUNK):
        inputs = inputs + (tl.load(start_of_input + chunk * CHUNK + place, mask=live, other=0.0),)  # noqa: RUF005
    shares = tl.zeros([SHARES, ROWS, STRIP], tl.float32)
    row_squares = shares
    if TILES > 0:
        row_squares = load_squares(squares, row, num_rows, TILES, TILES_SPAN)
    if ADD:
        mask = (row < num_rows)[:, None] & in_strip[None, :]
        addend = tl.load(out + row[:, None] * num_outputs + output[None, :], mask=mask, other=0.0)
    for chunk in tl.static_range(K // CHUNK):
        turned = tl.permute(weights[chunk], (0, 2, 1))
        shares = tl.dot(inputs[chunk], turned, acc=shares, input_precision=PRECISION)
    total = sum_of_shares(shares)
    if ADD:
        total += addend.to(tl.float32)
    store_results(
        total,
        total,  # of ups, of which there are none
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
        GATED=False,
        NORM=NORM,
        TILES=TILES,
    )


def linear_held_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    add: bool = False,
    leave_squares: bool = False,
    squares: Tensor | None = None,
    eps: float = 0.0,
    config: HeldConfig | None = None,
) -> Tensor:
    """Do what `rows.linear_rows` does without gates, by a weight that `tuning.held_config` has settings for.

    The weight must have been written before the kernel ahead of this one began, as it is read before that ends. Raises
    ``ValueError`` on unfit shapes, strides or types, and on what does not go together.
    """
    num_rows, num_inputs = x.shape
    num_outputs = check_product(
        x, weight, bias, out, gated=False, add=add, leave_squares=leave_squares, squares=squares
    )
    config = config or held_config(num_rows, num_outputs, num_inputs)
    if config is None or num_inputs % config.chunk:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; there are no settings for it")
    strips = cdiv(num_outputs, config.strip)
    results = allocate_results(x, num_outputs, strips, out=out, leave_squares=leave_squares, squares=squares)
    overlap = overlaps_launches(x.device)
    _linear_held_rows_kernel[(strips, cdiv(num_rows, config.rows))](
        x,
        weight,
        x if bias is None else bias,
        results.out,
        results.squares,
        num_rows,
        num_outputs,
        x.stride(0),
        weight.stride(0),
        eps,
        K=num_inputs,
        CHUNK=config.chunk,
        ROWS=config.rows,
        STRIP=config.strip,
        SHARES=config.num_warps,
        HAS_BIAS=bias is not None,
        ADD=add,
        NORM=results.leaves_squares,
        TILES=results.num_tiles,
        TILES_SPAN=next_power_of_2(max(results.num_tiles, 1)),
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        OVERLAP=overlap,
        num_warps=config.num_warps,
        **launch_options(overlap),
    )
    return results.returned()
