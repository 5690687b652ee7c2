"""The products of one and of few rows and what they fold in, against torch references: on the GPU, else under the interpreter."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.linear import reference
from quire_kernels.linear.gemv import linear_gemv
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import GemvConfig, RowsConfig

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# The interpreter multiplies bfloat16 matrices wrongly without an error.
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
CONFIGS = [GemvConfig(rows=1, span=2048), GemvConfig(rows=2, span=32), None]
SHAPES = [(64, 64), (6, 100), (10, 33)]
if ON_GPU:
    SHAPES += [(28672, 4096), (6144, 4096), (1024, 3072), (1000, 3584), (130, 14336), (100_000, 512)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < (5e-6 if actual.dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize("dtype", DTYPES)
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
        assert_close(out, reference.linear(x, weight, bias))
        added = linear_gemv(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_close(added, reference.linear_add(residual, x, weight, bias))
        gated = linear_gemv(x, weight, bias, gated=True, config=config)
        assert gated.shape == (1, num_outputs // 2)
        assert_close(gated, reference.gated_linear(x, weight, bias))


ROWS_CONFIGS = [
    RowsConfig(strip=16, span=32, splits=1),
    RowsConfig(strip=16, span=32, splits=2),
    RowsConfig(strip=32, span=16, splits=4, num_stages=3),
    None,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [2, 16, 33, 64] if ON_GPU else [3, 17])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [*SHAPES[:5], *SHAPES[6:8]])
def test_product_of_few_rows_equals_reference(
    num_outputs: int, num_inputs: int, num_rows: int, with_bias: bool, dtype: torch.dtype
) -> None:
    x, weight = random(num_rows, num_inputs, dtype=dtype), random(num_outputs, num_inputs, dtype=dtype)
    bias = random(num_outputs, dtype=dtype) if with_bias else None
    residual = random(num_rows, num_outputs, dtype=dtype)
    for config in ROWS_CONFIGS:
        if dtype == torch.float32 and config is None:
            continue  # tuned for elements of two bytes: larger ones do not fit
        out = torch.full_like(residual, float("nan"))
        assert linear_rows(x, weight, bias, out=out, config=config) is out
        assert_close(out, reference.linear(x, weight, bias))
        added = linear_rows(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_close(added, reference.linear_add(residual, x, weight, bias))
        gated = linear_rows(x, weight, bias, gated=True, config=config)
        assert gated.shape == (num_rows, num_outputs // 2)
        assert_close(gated, reference.gated_linear(x, weight, bias))


def test_rows_of_a_wider_tensor_are_taken_where_they_lie() -> None:
    wide, weight = random(5, 96, dtype=torch.float32), random(32, 48, dtype=torch.float32)
    config = RowsConfig(strip=16, span=16, splits=1)
    assert_close(linear_rows(wide[:, 48:], weight, config=config), reference.linear(wide[:, 48:], weight))


def test_unfit_shapes_of_few_rows_are_refused() -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(4, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"it must be \(rows, 48\)"):
        linear_rows(x, weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_rows(x, random(32, 4, dtype=torch.float32).T)


def test_unfit_shapes_are_refused() -> None:
    x, weight = random(1, 32, dtype=torch.float32), random(4, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"it must be \(1, 48\)"):
        linear_gemv(x, weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_gemv(x, random(32, 4, dtype=torch.float32).T)
