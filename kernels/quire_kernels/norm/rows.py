"""Triton RMSNorm over rows, with the residual addition folded in where there is one. Truth:
`norm/reference.py`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

_ELEMENTS_PER_PROGRAM = 2048  # short rows (one head) share a program up to this size
_MAX_COLUMNS = 65536


@triton.jit
def _rms_norm_rows_kernel(
    x,  # [num_rows, num_columns]
    residual,  # the same, or unused
    weight,  # [num_columns], or unused
    out,  # [num_rows, num_columns]
    new_residual,  # the same, or unused
    num_rows,
    x_row_stride,
    residual_row_stride,
    eps,
    NUM_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    inside = (row < num_rows) & (column < NUM_COLUMNS)
    row = row.to(tl.int64)
    if HAS_WEIGHT:
        scale = tl.load(weight + column, mask=column < NUM_COLUMNS, other=0.0).to(tl.float32)
    wait_for_inputs(OVERLAP)
    values = tl.load(x + row * x_row_stride + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        values += tl.load(residual + row * residual_row_stride + column, mask=inside, other=0.0).to(
            tl.float32
        )
        rounded = values.to(new_residual.dtype.element_ty)
        tl.store(new_residual + row * NUM_COLUMNS + column, rounded, mask=inside)
        values = rounded.to(tl.float32)
    inverse_rms = tl.rsqrt(tl.sum(values * values, axis=1) / NUM_COLUMNS + eps)
    normed = values * inverse_rms[:, None]
    if HAS_WEIGHT:
        normed *= scale
    tl.store(out + row * NUM_COLUMNS + column, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm_rows(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Normalise the last dimension of ``x [..., D]``; raises ``ValueError`` on a ``weight`` that is not ``[D]``."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    _launch(rows, None, weight, out, None, eps)
    return out.view(x.shape)


def fused_add_rms_norm_rows(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the norm of ``x + residual`` and the sum, both ``[T, H]``; raises ``ValueError`` on unequal
    shapes.
    """
    if x.shape != residual.shape:
        raise ValueError(
            f"residual has shape {tuple(residual.shape)}; it must be that of x, {tuple(x.shape)}"
        )
    rows, residual_rows = x.reshape(-1, x.shape[-1]), residual.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    new_residual = torch.empty_like(residual_rows, memory_format=torch.contiguous_format)
    _launch(rows, residual_rows, weight, out, new_residual, eps)
    return out.view(x.shape), new_residual.view(x.shape)


def _launch(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    out: Tensor,
    new_residual: Tensor | None,
    eps: float,
) -> None:
    num_rows, num_columns = x.shape
    if weight is not None and weight.shape != (num_columns,):
        raise ValueError(f"weight has shape {tuple(weight.shape)}; it must be ({num_columns},)")
    if num_columns > _MAX_COLUMNS:
        raise ValueError(f"rows have {num_columns} columns; this kernel takes at most {_MAX_COLUMNS}")
    if x.stride(1) != 1 or (residual is not None and residual.stride(1) != 1):
        raise ValueError("the last dimension of x and residual must be contiguous")
    if num_rows == 0:
        return
    columns = next_power_of_2(num_columns)
    overlap = overlaps_launches(x.device)
    rows = max(1, _ELEMENTS_PER_PROGRAM // columns)
    _rms_norm_rows_kernel[(cdiv(num_rows, rows),)](
        x,
        x if residual is None else residual,
        x if weight is None else weight,
        out,
        out if new_residual is None else new_residual,
        num_rows,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
        NUM_COLUMNS=num_columns,
        ROWS=rows,
        COLUMNS=columns,
        HAS_RESIDUAL=residual is not None,
        HAS_WEIGHT=weight is not None,
        OVERLAP=overlap,
        num_warps=min(16, max(4, columns // 512)),
        **launch_options(overlap),
    )
