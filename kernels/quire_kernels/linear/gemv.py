"""Triton matrix-vector product for a batch of one, bound by reading the weight once. Truth: `linear/reference.py`.

One program computes a few output elements, reading their rows of the weight end to end; the first of them are on their
way before the kernel that makes the input has ended. The gate of the activation and the addition to the residual are
folded in, because at a batch of one a launch costs as much as half a megabyte of weights. (RMSNorm is not: reading its
weight in every program was seen to cost more than its launch, which the early reads hide.)
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.linear.tuning import GemvConfig, gemv_config
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)


@triton.jit
def _linear_gemv_kernel(
    x, weight, bias, out, num_outputs, weight_stride,
    K: tl.constexpr, ROWS: tl.constexpr, SPAN: tl.constexpr,
    HAS_BIAS: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live = row < num_outputs
    start_of_row = weight + row.to(tl.int64)[:, None] * weight_stride
    start_of_up = start_of_row + tl.cast(num_outputs, tl.int64) * weight_stride
    # The first weights do not depend on the kernel before: they are on their way while it ends.
    column = tl.arange(0, SPAN)
    inside = live[:, None] & (column < K)[None, :]
    weights = tl.load(start_of_row + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
    if GATED:
        ups = tl.load(start_of_up + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first")
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    vector = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
    total = weights.to(tl.float32) * vector
    if GATED:
        total_up = ups.to(tl.float32) * vector
    for start in range(SPAN, K, SPAN):
        column = start + tl.arange(0, SPAN)
        inside = live[:, None] & (column < K)[None, :]
        weights = tl.load(
            start_of_row + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        )
        vector = tl.load(x + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
        total += weights.to(tl.float32) * vector
        if GATED:
            ups = tl.load(
                start_of_up + column[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
            )
            total_up += ups.to(tl.float32) * vector
    product = tl.sum(total, axis=1)
    if HAS_BIAS:
        product += tl.load(bias + row, mask=live, other=0.0).to(tl.float32)
    if GATED:
        up = tl.sum(total_up, axis=1)
        if HAS_BIAS:
            up += tl.load(bias + num_outputs + row, mask=live, other=0.0).to(tl.float32)
        product = product * tl.sigmoid(product) * up
    if ADD:
        product += tl.load(out + row, mask=live, other=0.0).to(tl.float32)
    tl.store(out + row, product.to(out.dtype.element_ty), mask=live)


def linear_gemv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor | None = None,
    gated: bool = False,
    add: bool = False,
    config: GemvConfig | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [1, K]``, in ``out`` where it is given.

    ``gated`` takes the first half of the outputs as gate of the second (``silu(gate) * up``); ``add`` adds to what
    ``out`` holds. Raises ``ValueError`` on more rows or unfit strides.
    """
    if x.shape[0] != 1 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (1, {weight.shape[1]})")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("the rows of x and weight must be contiguous")
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    if out is None:
        out = torch.empty((1, num_outputs), dtype=x.dtype, device=x.device)
    config = config or gemv_config(num_outputs, x.shape[1], gated=gated)
    overlap = overlaps_launches(x.device)
    _linear_gemv_kernel[(cdiv(num_outputs, config.rows),)](
        x, weight, x if bias is None else bias, out, num_outputs, weight.stride(0),
        K=x.shape[1], ROWS=config.rows, SPAN=min(config.span, next_power_of_2(x.shape[1])),
        HAS_BIAS=bias is not None, GATED=gated, ADD=add, OVERLAP=overlap,
        num_warps=config.num_warps, num_stages=config.num_stages, **launch_options(overlap),
    )  # fmt: skip
    return out
