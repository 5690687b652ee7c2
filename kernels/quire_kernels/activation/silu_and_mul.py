"""Triton SiLU-and-multiply, one pass over the gate and up halves. Truth: `activation/reference.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

_COLUMNS = 1024


@triton.jit
def _silu_and_mul_tiles_kernel(x, out, x_row_stride, width, COLUMNS: tl.constexpr, OVERLAP: tl.constexpr):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    gate = tl.load(x + row * x_row_stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row_stride + width + column, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + column, product.to(out.dtype.element_ty), mask=inside)


def silu_and_mul_tiles(x: Tensor) -> Tensor:
    """Return ``silu(x[..., :I]) * x[..., I:]`` of ``x [..., 2 * I]``; raises ``ValueError`` on an odd
    width.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"the last dimension of x is {x.shape[-1]}; it must be even (gate, then up)")
    width = x.shape[-1] // 2
    rows = x.reshape(-1, 2 * width)
    if rows.stride(1) != 1:
        raise ValueError("the last dimension of x must be contiguous")
    out = torch.empty((rows.shape[0], width), dtype=x.dtype, device=x.device)
    if out.numel():
        grid = (rows.shape[0], cdiv(width, _COLUMNS))
        overlap = overlaps_launches(x.device)
        _silu_and_mul_tiles_kernel[grid](
            rows,
            out,
            rows.stride(0),
            width,
            COLUMNS=_COLUMNS,
            OVERLAP=overlap,
            num_warps=4,
            **launch_options(overlap),
        )
    return out.view(*x.shape[:-1], width)
