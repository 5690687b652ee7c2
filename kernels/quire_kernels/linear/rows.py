"""Triton product of a few rows with a weight, with what surrounds it in a decoder layer folded in.

For batches whose product is bound by reading the weight: one program reads its outputs' rows of the weight once, for
all rows of the batch. RMSNorm, gate and residual are folded in as in `gemv.py`. Truth: `linear/reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.linear.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)
from quire_kernels.linear.tuning import RowsConfig, rows_config


@triton.jit
def _linear_rows_kernel(
    x, weight, bias, norm_weight, out, num_rows, num_outputs, K, x_stride, weight_stride, out_stride, eps,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, SPAN: tl.constexpr, EVEN: tl.constexpr,
    HAS_BIAS: tl.constexpr, NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr,
    PRECISION: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    finish_launching(OVERLAP)
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SPAN)
    live, produced = row < num_rows, output < num_outputs
    x_tile = x + row[:, None] * x_stride + column[None, :]
    w_tile = weight + output.to(tl.int64)[:, None] * weight_stride + column[None, :]
    up_offset = tl.cast(num_outputs, tl.int64) * weight_stride
    total = tl.zeros([ROWS, OUTPUTS], tl.float32)
    total_up = tl.zeros([ROWS, OUTPUTS], tl.float32)
    squares = tl.zeros([ROWS], tl.float32)
    wait_for_inputs(OVERLAP)
    for start in range(0, K, SPAN):
        if EVEN:
            xs = tl.load(x_tile + start, mask=live[:, None], other=0.0)
            ws = tl.load(w_tile + start)
        else:
            inside = (start + column < K)[None, :]
            xs = tl.load(x_tile + start, mask=live[:, None] & inside, other=0.0)
            ws = tl.load(w_tile + start, mask=produced[:, None] & inside, other=0.0)
        if NORM:
            wide = xs.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            scale = tl.load(norm_weight + start + column, mask=start + column < K, other=0.0).to(tl.float32)
            xs = (wide * scale[None, :]).to(xs.dtype)
        total = tl.dot(xs, tl.trans(ws), total, input_precision=PRECISION)
        if GATED:
            if EVEN:
                ups = tl.load(w_tile + up_offset + start)
            else:
                ups = tl.load(w_tile + up_offset + start, mask=produced[:, None] & inside, other=0.0)
            total_up = tl.dot(xs, tl.trans(ups), total_up, input_precision=PRECISION)
    if NORM:
        inverse_rms = tl.rsqrt(squares / K + eps)[:, None]
        total *= inverse_rms
        total_up *= inverse_rms
    if HAS_BIAS:
        total += tl.load(bias + output, mask=produced, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if HAS_BIAS:
            total_up += tl.load(bias + num_outputs + output, mask=produced, other=0.0).to(tl.float32)[None, :]
        total = total * tl.sigmoid(total) * total_up
    target = out + row.to(tl.int64)[:, None] * out_stride + output[None, :]
    mask = live[:, None] & produced[None, :]
    if ADD:
        total += tl.load(target, mask=mask, other=0.0).to(tl.float32)
    tl.store(target, total.to(out.dtype.element_ty), mask=mask)


def linear_rows(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    norm_weight: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    add: bool = False,
    config: RowsConfig | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]``; options and errors are those of `gemv.linear_gemv`."""
    num_rows, num_inputs = x.shape
    if num_inputs != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be [T, {weight.shape[1]}]")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("the rows of x and weight must be contiguous")
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if out is None:
        out = torch.empty((num_rows, num_outputs), dtype=x.dtype, device=x.device)
    config = config or rows_config(num_rows, num_outputs, num_inputs, gated=gated)
    overlap = overlaps_launches(x.device)
    _linear_rows_kernel[(triton.cdiv(num_outputs, config.outputs), triton.cdiv(num_rows, config.rows))](
        x, weight, x if bias is None else bias, x if norm_weight is None else norm_weight, out, num_rows,
        num_outputs, num_inputs, x.stride(0), weight.stride(0), out.stride(0), eps,
        ROWS=config.rows, OUTPUTS=config.outputs, SPAN=config.span,
        EVEN=num_inputs % config.span == 0 and num_outputs % config.outputs == 0,
        HAS_BIAS=bias is not None, NORM=norm_weight is not None, GATED=gated, ADD=add,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32", OVERLAP=overlap,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(overlap),
    )  # fmt: skip
    return out
