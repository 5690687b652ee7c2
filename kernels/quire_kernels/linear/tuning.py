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


_USUAL = GemvConfig(rows=4, span=2048)
_GATED = GemvConfig(rows=4, span=1024)  # twice the weights per output
_MANY_OUTPUTS = GemvConfig(rows=2, span=4096)
_MANY = 65536  # the logits of a large vocabulary


def gemv_config(num_outputs: int, *, gated: bool) -> GemvConfig:
    """Settings for a product of so many outputs."""
    if gated:
        return _GATED
    return _MANY_OUTPUTS if num_outputs >= _MANY else _USUAL
