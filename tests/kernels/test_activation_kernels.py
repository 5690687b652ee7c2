"""Activations: each Triton kernel against its torch reference."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.activation.reference import silu_and_mul
from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles

from tests.kernels.case import DTYPES, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 100, 1025])
def test_silu_and_mul_equals_reference(width: int, dtype: torch.dtype) -> None:
    x = random(3, 2 * width, dtype=dtype)
    assert_close(silu_and_mul_tiles(x), silu_and_mul(x))
