"""The product of one row and what it folds in, against torch: on the GPU, else under the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.linear import reference
from quire_kernels.linear.gemv import linear_gemv
from quire_kernels.linear.tuning import GemvConfig

from tests.kernels.case import ON_GPU, WIDE_DTYPES, assert_product_close, random

pytestmark = pytest.mark.usefixtures("seeded")

CONFIGS = [GemvConfig(rows=1, span=2048), GemvConfig(rows=2, span=32), None]
SHAPES = [(64, 64), (6, 100), (10, 33)]
if ON_GPU:
    SHAPES += [(28672, 4096), (6144, 4096), (1024, 3072), (1000, 3584), (130, 14336), (100_000, 512)]


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_product_equals_reference(
    num_outputs: int, num_inputs: int, with_bias: bool, dtype: torch.dtype
) -> None:
    x, weight = random(1, num_inputs, dtype=dtype), random(num_outputs, num_inputs, dtype=dtype)
    bias = random(num_outputs, dtype=dtype) if with_bias else None
    residual = random(1, num_outputs, dtype=dtype)
    for config in CONFIGS:
        out = torch.full_like(residual, float("nan"))
        assert linear_gemv(x, weight, bias, out=out, config=config) is out
        assert_product_close(out, reference.linear(x, weight, bias))
        added = linear_gemv(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_product_close(added, reference.linear_add(residual, x, weight, bias))
        gated = linear_gemv(x, weight, bias, gated=True, config=config)
        assert gated.shape == (1, num_outputs // 2)
        assert_product_close(gated, reference.gated_linear(x, weight, bias))


def test_unfit_shapes_are_refused() -> None:
    x, weight = random(1, 32, dtype=torch.float32), random(4, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"it must be \(1, 48\)"):
        linear_gemv(x, weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_gemv(x, random(32, 4, dtype=torch.float32).T)
