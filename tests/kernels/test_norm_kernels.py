"""Norms: each Triton kernel against its torch reference."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.norm.reference import fused_add_rms_norm, rms_norm
from quire_kernels.norm.rows import fused_add_rms_norm_rows, rms_norm_rows

from tests.kernels.case import DTYPES, ON_GPU, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 100), (5, 4096 if ON_GPU else 129)])
def test_rms_norm_equals_reference(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        random(*shape, dtype=dtype) for shape in ((rows, columns), (rows, columns), (columns,))
    )
    for given in (weight, None):
        assert_close(rms_norm_rows(x, given, 1e-5), rms_norm(x, given, 1e-5))
    for actual, expected in zip(
        fused_add_rms_norm_rows(x, residual, weight, 1e-5),
        fused_add_rms_norm(x, residual, weight, 1e-5),
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_takes_a_slice_of_heads(dtype: torch.dtype) -> None:
    fused, weight = random(7, 5, 96, dtype=dtype), random(96, dtype=dtype)
    assert_close(rms_norm_rows(fused[:, 1:4], weight, 1e-6), rms_norm(fused[:, 1:4], weight, 1e-6))
