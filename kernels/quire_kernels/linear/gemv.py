"""Triton matrix-vector product for a batch of one, bound by reading the weight once. Truth:
`linear/reference.py`.

One program computes a few output elements, reading their rows of the weight end to end.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _linear_gemv_kernel(
    x, weight, bias, out, num_outputs, weight_stride, K: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < num_outputs
    start_of_row = weight + row.to(tl.int64)[:, None] * weight_stride
    total = tl.zeros([ROWS, SPAN], tl.float32)
    for start in range(0, K, SPAN):
        column = start + tl.arange(0, SPAN)
        vector = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)
        inside = live[:, None] & (column < K)[None, :]
        weights = tl.load(
            start_of_row + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        ).to(tl.float32)
        total += weights * vector[None, :]
    product = tl.sum(total, axis=1)
    if HAS_BIAS:
        product += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row, product.to(out.dtype.element_ty), mask=live)


def linear_gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    rows: int = 1,
    span: int = 2048,
    num_warps: int = 8,
    num_stages: int = 2,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [1, K]``; raises ``ValueError`` on more rows or unfit
    strides.
    """
    if x.shape[0] != 1 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (1, {weight.shape[1]})")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("the rows of x and weight must be contiguous")
    if out is None:
        out = torch.empty((1, weight.shape[0]), dtype=x.dtype, device=x.device)
    _linear_gemv_kernel[(triton.cdiv(weight.shape[0], rows),)](
        x,
        weight,
        x if bias is None else bias,
        out,
        weight.shape[0],
        weight.stride(0),
        K=x.shape[1],
        ROWS=rows,
        SPAN=min(span, triton.next_power_of_2(x.shape[1])),
        HAS_BIAS=bias is not None,
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return out
