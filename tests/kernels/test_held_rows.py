"""Products of few rows whose weights are held in registers, against torch: on the GPU, else under the interpreter."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.linear import reference
from quire_kernels.linear.held_rows import linear_held_rows
from quire_kernels.linear.tuning import HeldConfig, held_config

from tests.kernels.case import ON_GPU, WIDE_DTYPES, assert_product_close, random

pytestmark = pytest.mark.usefixtures("seeded")

HELD_CONFIGS = [
    HeldConfig(strip=8, chunk=32, num_warps=2),
    HeldConfig(strip=16, chunk=64, num_warps=4),
    HeldConfig(strip=32, chunk=128, rows=32, num_warps=8),
]


@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("num_rows", [2, 9, 16, 33, 64] if ON_GPU else [19])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs"),
    [(4096, 1024), (1024, 2048), (1024, 3072), (1000, 128)] if ON_GPU else [(36, 128)],
)
def test_product_with_held_weights_equals_reference(
    num_outputs: int, num_inputs: int, num_rows: int, with_bias: bool, dtype: torch.dtype
) -> None:
    wide = random(num_rows, num_inputs + 64, dtype=dtype)
    x, weight = wide[:, 64:], random(num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5
    bias = random(num_outputs, dtype=dtype) if with_bias else None
    residual = random(num_rows, num_outputs, dtype=dtype)
    tuned = held_config(num_rows, num_outputs, num_inputs) if dtype.itemsize == 2 else None
    for config in HELD_CONFIGS if num_inputs == 128 else [tuned] if tuned else []:
        out = torch.full_like(residual, float("nan"))
        assert linear_held_rows(x, weight, bias, out=out, config=config) is out
        assert_product_close(out, reference.linear(x, weight, bias))
        added = linear_held_rows(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_product_close(added, reference.linear_add(residual, x, weight, bias))


def test_weights_that_cannot_be_held_are_refused() -> None:
    x, weight = random(2, 48, dtype=torch.float32), random(16, 48, dtype=torch.float32)
    with pytest.raises(ValueError, match="no settings"):
        linear_held_rows(x, weight)
    with pytest.raises(ValueError, match="no settings"):
        linear_held_rows(x, weight, config=HeldConfig(strip=16, chunk=32))
    with pytest.raises(ValueError, match=r"it must be \(rows, 48\)"):
        linear_held_rows(x[:, :32], weight)
    with pytest.raises(ValueError, match="contiguous"):
        linear_held_rows(x, random(48, 16, dtype=torch.float32).T)


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "strip"),
    [
        (2, 1024, 2048, 8),
        (16, 1024, 3072, 8),
        (16, 4096, 1024, 32),
        (17, 1024, 2048, 16),
        (17, 4096, 1024, None),  # of many outputs: by tiles
        (32, 1024, 3072, 16),
        (33, 1024, 3072, None),  # 96 Ki weights a program
        (64, 1024, 2048, 32),
        (65, 1024, 2048, None),
        (16, 1024, 4096, None),  # more inputs than a program has memory for
        (16, 1024, 1000, None),
        (16, 16384, 512, None),
        (16, 4104, 2048, None),
    ],
)
def test_weights_are_held_where_that_was_faster(
    num_rows: int, num_outputs: int, num_inputs: int, strip: int | None
) -> None:
    config = held_config(num_rows, num_outputs, num_inputs)
    assert (config and config.strip) == strip
    if config:
        assert num_inputs % config.chunk == 0
        assert config.chunk >= 16 * config.num_warps
