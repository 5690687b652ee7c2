"""Tuned launch settings of the matrix-vector product. Data and its lookup only.

Measured on one H200 by `benchmarks/kernels/linear_tiles.py`. From two rows on the library's products were as fast as
any of ours, so that there is no table for them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GemvConfig:
    """How a matrix-vector product is cut: outputs per program and inputs per pass over them."""

    rows: int
    span: int
    num_warps: int = 4
    num_stages: int = 2


_MANY_OUTPUTS = 65536  # the logits of a large vocabulary


def gemv_config(num_outputs: int, num_inputs: int, *, gated: bool) -> GemvConfig:
    """Settings for a product of so many outputs and inputs; `gated` ones read twice the weights per output."""
    if gated:
        if num_inputs < 2048:
            return GemvConfig(rows=2, span=512, num_warps=2)
        return GemvConfig(rows=1, span=1024, num_warps=8)
    if num_outputs >= _MANY_OUTPUTS:
        return GemvConfig(rows=4, span=2048)
    if num_inputs >= 4096:
        return GemvConfig(rows=8, span=1024, num_stages=4)
    if num_inputs >= 2048:
        return GemvConfig(rows=8, span=2048, num_warps=8)
    return GemvConfig(rows=4, span=512, num_warps=2)
