"""Products of few rows, whose weights are read as they are multiplied, against torch: on the GPU, else under the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.linear import reference
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import RowsConfig, suits_few_rows

from tests.kernels.case import ON_GPU, WIDE_DTYPES, assert_product_close, random

pytestmark = pytest.mark.usefixtures("seeded")

SHAPES = [(64, 64), (6, 100), (10, 33)]
if ON_GPU:
    SHAPES += [(28672, 4096), (6144, 4096), (1000, 3584), (130, 14336)]
ROWS_CONFIGS = [
    RowsConfig(strip=16, span=32, splits=1),
    RowsConfig(strip=16, span=64, splits=2, shares=4, num_stages=3, rotate=True),
    RowsConfig(strip=32, span=16, splits=4, num_stages=3),
    None,
]
if not ON_GPU:  # where each would have to be compiled for every shape
    ROWS_CONFIGS += [
        RowsConfig(strip=16, span=32, splits=2),
        RowsConfig(strip=16, span=64, splits=1, shares=2, num_warps=2),
        RowsConfig(strip=16, span=128, splits=1, shares=8, num_warps=8),
        RowsConfig(strip=32, span=16, splits=1, ahead=64, rotate=True),
    ]


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [2, 16, 33, 64] if ON_GPU else [3, 17])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
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
        assert_product_close(out, reference.linear(x, weight, bias))
        added = linear_rows(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_product_close(added, reference.linear_add(residual, x, weight, bias))
        gated = linear_rows(x, weight, bias, gated=True, config=config)
        assert gated.shape == (num_rows, num_outputs // 2)
        assert_product_close(gated, reference.gated_linear(x, weight, bias))


def test_a_gated_sum_is_refused() -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(32, 32, dtype=torch.float32)
    with pytest.raises(ValueError, match="gated product cannot be added"):
        linear_rows(x, weight, out=x[:, :16].contiguous(), gated=True, add=True)


def test_rows_of_a_wider_tensor_are_taken_where_they_lie() -> None:
    wide, weight = random(5, 96, dtype=torch.float32), random(32, 48, dtype=torch.float32)
    config = RowsConfig(strip=16, span=16, splits=1)
    assert_product_close(
        linear_rows(wide[:, 48:], weight, config=config), reference.linear(wide[:, 48:], weight)
    )


def test_unfit_shapes_of_few_rows_are_refused() -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(4, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"it must be \(rows, 48\)"):
        linear_rows(x, weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_rows(x, random(32, 4, dtype=torch.float32).T)
    with pytest.raises(ValueError, match="gated"):
        linear_rows(x, random(4, 32, dtype=torch.float32), out=x.new_zeros(2, 2), gated=True, add=True)


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "gated", "suited"),
    [
        # Small weights, of 8 Mi elements at most, gates and ups together.
        (2, 4096, 2048, False, True),
        (64, 4096, 2048, False, True),
        (65, 4096, 2048, False, False),
        (65, 1024, 1024, True, False),
        (2, 4104, 2048, False, False),
        (64, 4096, 1024, True, True),
        (64, 4104, 1024, True, False),
        # Large ones, into and out of a wide feed-forward block.
        (2, 12288, 2560, True, True),
        (2, 12280, 2560, True, False),
        (2, 2560, 12288, False, True),
        (2, 2560, 12272, False, False),
        (2, 14336, 14336, False, False),
        (2, 14336, 2560, False, False),
        (16, 151936, 1024, False, False),
        (16, 10240, 8192, False, False),
        *((num_rows, 17408, 5120, True, num_rows not in (17, 32)) for num_rows in (16, 17, 32, 33, 64)),
        *((num_rows, 5120, 17408, False, num_rows not in (17, 32)) for num_rows in (16, 17, 32, 33, 64)),
        (24, 4096, 2048, False, True),
    ],
)
def test_only_products_of_few_rows_that_were_faster_are_taken(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, suited: bool
) -> None:
    assert suits_few_rows(num_rows, num_outputs, num_inputs, gated=gated) == suited
