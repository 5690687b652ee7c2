"""Tuned launch settings of the projections, and the batch sizes at which they beat the library. Data and lookup only."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GemvConfig:
    """How a matrix-vector product is cut: outputs per program and inputs per pass over them."""

    rows: int = 1
    span: int = 2048
    num_warps: int = 8
    num_stages: int = 2


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How a product of few rows is cut: rows and outputs per program, inputs per pass."""

    rows: int
    outputs: int
    span: int
    num_warps: int
    num_stages: int


MAX_FUSED_ROWS = 64
"""Up to here a product reads weights for longer than it computes, and folding saves launches."""


def gemv_config(num_inputs: int, *, gated: bool) -> GemvConfig:
    """Settings for one row."""
    return GemvConfig()


def rows_config(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> RowsConfig:
    """Settings for a few rows; enough programs to fill the chip, and enough bytes in flight in each."""
    rows = max(16, 1 << (num_rows - 1).bit_length())
    outputs = 16
    while outputs < (32 if gated else 64) and num_outputs // (2 * outputs) >= 128:
        outputs *= 2
    return RowsConfig(rows=rows, outputs=outputs, span=128, num_warps=4, num_stages=4)
