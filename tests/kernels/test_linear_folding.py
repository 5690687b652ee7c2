"""Norms between products of few rows, and what such products refuse, by both kernels: on the GPU, else under the interpreter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.linear import reference
from quire_kernels.linear.held_rows import linear_held_rows
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import HeldConfig, RowsConfig, suits_folded_norm
from quire_kernels.norm.reference import rms_norm

from tests.kernels.case import DTYPES, ON_GPU, assert_product_close, random
from tests.kernels.test_held_rows import HELD_CONFIGS
from tests.kernels.test_linear_rows import ROWS_CONFIGS

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [2, 16, 33, 64] if ON_GPU else [3])
@pytest.mark.parametrize(
    ("num_inputs", "hidden_size", "num_outputs"),
    [(128, 128, 48), (2048, 1024, 6144), (3072, 1024, 4096)] if ON_GPU else [(64, 128, 48)],
)
@pytest.mark.parametrize("multiply", [linear_rows, linear_held_rows])
def test_a_norm_between_products_is_folded_into_them(
    multiply: Callable[..., Any],
    num_inputs: int,
    hidden_size: int,
    num_outputs: int,
    num_rows: int,
    dtype: torch.dtype,
) -> None:
    x = random(num_rows, num_inputs, dtype=dtype)
    weight = random(hidden_size, num_inputs, dtype=dtype) / num_inputs**0.5
    following = random(num_outputs, hidden_size, dtype=dtype) / hidden_size**0.5
    residual, bias = random(num_rows, hidden_size, dtype=dtype), random(num_outputs, dtype=dtype)
    configs = ROWS_CONFIGS if multiply is linear_rows else [*HELD_CONFIGS[:2], None]
    for config in configs:
        if config is None and (
            dtype == torch.float32 or (multiply is linear_held_rows and (num_rows > 16 or num_inputs < 1024))
        ):
            continue
        if isinstance(config, HeldConfig) and num_inputs > 128:
            continue
        out = residual.clone()
        squares = multiply(x, weight, out=out, add=True, leave_squares=True, config=config)
        assert torch.equal(out, multiply(x, weight, out=residual.clone(), add=True, config=config))
        expected = out.double().square().sum(1)
        assert (squares.double().sum(1) - expected).abs().max() <= 1e-5 * expected.max()
        normed = rms_norm(out.double(), None, 1e-6)
        product = multiply(out, following, bias, squares=squares, eps=1e-6, config=config)
        assert_product_close(product, reference.linear(normed, following.double(), bias.double()).to(dtype))
        if multiply is linear_rows:
            gated = multiply(out, following, bias, gated=True, squares=squares, eps=1e-6, config=config)
            assert_product_close(
                gated, reference.gated_linear(normed, following.double(), bias.double()).to(dtype)
            )


@pytest.mark.parametrize(
    ("multiply", "config"),
    [(linear_rows, RowsConfig(strip=16, span=16, splits=1)), (linear_held_rows, HELD_CONFIGS[0])],
)
def test_squares_of_any_number_of_tiles_are_taken(
    multiply: Callable[..., Any], config: RowsConfig | HeldConfig
) -> None:
    x, weight = random(5, 96, dtype=torch.float32), random(32, 96, dtype=torch.float32)
    squares = random(5, 96, dtype=torch.float32).square()
    expected = reference.linear(x, weight) * torch.rsqrt(squares.mean(1, keepdim=True) + 0.5)
    for tiles in (1, 3, 96):
        parts = squares.view(5, tiles, -1).sum(2)
        assert_product_close(multiply(x, weight, squares=parts, eps=0.5, config=config), expected)


@pytest.mark.parametrize("multiply", [linear_rows, linear_held_rows])
def test_norms_that_cannot_be_folded_are_refused(multiply: Callable[..., Any]) -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(32, 32, dtype=torch.float32)
    squares, out = torch.ones(2, 4), x.clone()
    with pytest.raises(ValueError, match="only a sum"):
        multiply(x, weight, out=out, add=False, leave_squares=True)
    with pytest.raises(ValueError, match="only a sum"):
        multiply(x, weight, out=out, add=True, leave_squares=True, squares=squares)
    with pytest.raises(ValueError, match=r"must be \(2, tiles\)"):
        multiply(x, weight, squares=squares[:1])
    with pytest.raises(ValueError, match="cannot be added"):
        multiply(x, weight, out=out, add=True, squares=squares)


@pytest.mark.parametrize("multiply", [linear_rows, linear_held_rows])
def test_a_bias_of_another_size_and_one_with_gaps_are_refused(multiply: Callable[..., Any]) -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(32, 32, dtype=torch.float32)
    for bias in (
        random(16, dtype=torch.float32),
        random(64, dtype=torch.float32),
        random(64, dtype=torch.float32)[::2],
    ):
        with pytest.raises(ValueError, match=r"bias has shape .* must be \(32,\), contiguous"):
            multiply(x, weight, bias)


@pytest.mark.parametrize("multiply", [linear_rows, linear_held_rows])
@pytest.mark.parametrize("unfit", ["row", "dtype", "strides"])
def test_out_that_a_product_does_not_fit_is_refused(multiply: Callable[..., Any], unfit: str) -> None:
    x, weight = random(2, 32, dtype=torch.float32), random(32, 32, dtype=torch.float32)
    out = {"row": torch.empty(1, 32), "dtype": torch.empty(2, 32).half(), "strides": torch.empty(32, 2).T}[
        unfit
    ]
    with pytest.raises(ValueError, match="out is"):
        multiply(x, weight, out=out)


def test_norms_are_folded_into_products_by_small_weights() -> None:
    assert suits_folded_norm(8 << 20)
    assert not suits_folded_norm((8 << 20) + 1)
