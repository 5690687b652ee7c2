"""The projections that fold their surroundings in, against torch references: on the GPU, else under the interpreter."""

from collections.abc import Callable

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
EPS = 1e-5

GEMV = [GemvConfig(rows=1, span=2048), GemvConfig(rows=2, span=32)]
ROWS = [
    RowsConfig(rows=16, outputs=16, span=32, num_warps=4, num_stages=2),
    RowsConfig(rows=32, outputs=32, span=16, num_warps=4, num_stages=3),
]
SHAPES = [(1, 64, 64), (1, 6, 100), (7, 48, 64), (33, 10, 50)]
if ON_GPU:
    SHAPES += [(1, 14336, 4096), (64, 6144, 4096), (24, 1024, 3072), (5, 1000, 3584), (64, 130, 2048)]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < (5e-6 if actual.dtype == torch.float32 else 6e-3)


def kernels(num_rows: int) -> list[Callable[..., Tensor]]:
    """Every kernel and setting that takes the batch."""

    def bound(kernel: Callable[..., Tensor], config: object) -> Callable[..., Tensor]:
        return lambda *arguments, **options: kernel(*arguments, config=config, **options)

    rows = [bound(linear_rows, config) for config in (*ROWS, None)]
    return rows if num_rows > 1 else [*rows, *(bound(linear_gemv, config) for config in (*GEMV, None))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("num_rows", "num_outputs", "num_inputs"), SHAPES)
def test_folded_projections_equal_references(
    num_rows: int, num_outputs: int, num_inputs: int, with_bias: bool, dtype: torch.dtype
) -> None:
    x, norm_weight = random(num_rows, num_inputs, dtype=dtype), random(num_inputs, dtype=dtype)
    weight = random(num_outputs, num_inputs, dtype=dtype)
    bias = random(num_outputs, dtype=dtype) if with_bias else None
    residual = random(num_rows, num_outputs, dtype=dtype)
    for kernel in kernels(num_rows):
        out = torch.full_like(residual, float("nan"))
        assert kernel(x, weight, bias, out=out) is out
        assert_close(out, reference.linear(x, weight, bias))
        added = kernel(x, weight, bias, out=residual.clone(), add=True)
        assert_close(added, reference.linear_add(residual, x, weight, bias))
        normed = kernel(x, weight, bias, norm_weight=norm_weight, eps=EPS)
        assert_close(normed, reference.rms_norm_linear(x, norm_weight, EPS, weight, bias))
        gated = kernel(x, weight, bias, norm_weight=norm_weight, eps=EPS, gated=True)
        assert gated.shape == (num_rows, num_outputs // 2)
        assert_close(gated, reference.rms_norm_gated_linear(x, norm_weight, EPS, weight, bias))


def test_unfit_shapes_are_refused() -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(4, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"x has shape \(2, 32\); it must be \[T, 48\]"):
        linear_rows(x, weight)
    with pytest.raises(ValueError, match=r"it must be \(1, 48\)"):
        linear_gemv(x, weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_rows(x, random(32, 4, dtype=torch.float32).T)
