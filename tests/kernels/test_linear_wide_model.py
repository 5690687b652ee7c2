"""The products of a layer of 2 to 64 rows of models of 3,584 and 4,096 values a token: which kernel takes them, how they are cut,
and that they are right as they are served."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import between_attentions
from quire_kernels.dispatch import device, gated_linear, linear, linear_add_, projection
from quire_kernels.linear import reference
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import (
    RowsConfig,
    TilesConfig,
    rows_config,
    suits_few_rows,
    suits_tiles,
    tiles_config,
)
from quire_kernels.norm.reference import rms_norm

from tests.kernels.case import DEVICE, assert_close, random

EPS = 1e-5
MODELS = {
    "8B": {"o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336), "qkv": (6144, 4096)},
    "Qwen2.5-7B": {"o": (3584, 3584), "gate_up": (37888, 3584), "down": (3584, 18944), "qkv": (4608, 3584)},
}
PRODUCTS = [(model, name) for model in MODELS for name in MODELS[model]]
HAS_BIAS = {("Qwen2.5-7B", "qkv")}
VOCABULARIES = [(128256, 4096), (152064, 3584)]
NUMS_OF_ROWS = [2, 9, 16, 17, 24, 31, 32, 33, 48, 63, 64]


def sizes_of(model: str, name: str) -> tuple[int, int, bool]:
    """Outputs, inputs, and whether there are gates."""
    num_weights, num_inputs = MODELS[model][name]
    gated = name == "gate_up"
    return num_weights // 2 if gated else num_weights, num_inputs, gated


def drawn_weight(num_outputs: int, num_inputs: int) -> Tensor:
    return random(num_outputs, num_inputs, dtype=torch.bfloat16) / num_inputs**0.5


@pytest.mark.parametrize("num_rows", [2, 16, 17, 32, 33, 64, 65])
@pytest.mark.parametrize(("model", "name"), PRODUCTS)
@pytest.mark.parametrize("on_hopper", [False, True])
def test_the_kernel_that_was_fastest_is_taken(
    model: str, name: str, num_rows: int, on_hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    monkeypatch.setattr(device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(device, "holds_deep_pipelines", lambda device: True)
    monkeypatch.setattr(device, "is_hopper", lambda device: on_hopper)
    _, num_inputs, gated = sizes_of(model, name)
    x = torch.empty(num_rows, num_inputs, dtype=torch.bfloat16)
    weight = torch.empty(MODELS[model][name], dtype=torch.bfloat16)
    bias = weight[:, 0].contiguous() if (model, name) in HAS_BIAS else None
    product = projection._our_product(x, weight, bias, gated=gated)  # pyright: ignore[reportPrivateUsage]
    by_rows = num_rows <= 16 or (num_rows > 32 and name in ("gate_up", "down"))
    if on_hopper:
        by_rows = (num_rows <= 16 and name in ("o", "down")) or (num_rows > 32 and name == "down")
        if not by_rows and num_rows <= 64:
            assert product is not None
            assert product.__name__ == "linear_tiles_hopper"
            return
    assert product is (linear_rows if by_rows and num_rows <= 64 else None)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), VOCABULARIES)
def test_logits_of_up_to_16_rows_are_ours(num_outputs: int, num_inputs: int) -> None:
    for num_rows in (2, 16, 17, 64):
        assert suits_few_rows(num_rows, num_outputs, num_inputs, gated=False) == (num_rows <= 16)
        assert not suits_tiles(num_rows, num_outputs, num_inputs, gated=False)


def test_models_narrower_and_wider_than_those_measured_are_left_alone() -> None:
    for width in (3456, 4224):
        for num_rows in (2, 24, 64):
            assert not suits_tiles(num_rows, 14336, width, gated=True)
            assert not suits_tiles(num_rows, width, width, gated=False)
            assert not suits_few_rows(num_rows, width, width, gated=False)


@pytest.mark.parametrize(
    ("model", "name", "num_rows", "config"),
    [
        *(
            (model, "gate_up", num_rows, TilesConfig(outs=64, rows=16, unroll=False, num_stages=4))
            for model in MODELS
            for num_rows in (2, 16)
        ),
        *((model, "qkv", 16, TilesConfig(outs=64, rows=16, unroll=False)) for model in MODELS),
        *(
            (model, name, num_rows, TilesConfig(outs=64, rows=rows, unroll=False))
            for model in MODELS
            for name in ("gate_up", "o", "qkv")
            for num_rows, rows in ((17, 32), (32, 32), (33, 64), (64, 64))
        ),
        *((model, "down", 24, TilesConfig(outs=64, rows=32, unroll=False)) for model in MODELS),
        *((model, "down", 64, RowsConfig(strip=64, span=128, splits=2)) for model in MODELS),
        *(
            (model, name, 16, RowsConfig(strip=32, span=512, splits=1, shares=4))
            for model in MODELS
            for name in ("o", "down")
        ),
        # Where tiles are not at hand.
        ("8B", "gate_up", 48, RowsConfig(strip=64, span=64, splits=1, num_stages=8, ahead=128, rotate=True)),
    ],
)
def test_products_are_cut_as_was_fastest(
    model: str, name: str, num_rows: int, config: RowsConfig | TilesConfig
) -> None:
    num_outputs, num_inputs, gated = sizes_of(model, name)
    settings = tiles_config if isinstance(config, TilesConfig) else rows_config
    assert settings(num_rows, num_outputs, num_inputs, gated=gated) == config


@pytest.mark.parametrize("num_rows", NUMS_OF_ROWS)
@pytest.mark.parametrize(("model", "name"), PRODUCTS)
def test_tiles_hold_all_rows_and_fit(model: str, name: str, num_rows: int) -> None:
    num_outputs, num_inputs, gated = sizes_of(model, name)
    config = tiles_config(num_rows, num_outputs, num_inputs, gated=gated)
    assert config.rows >= num_rows
    assert num_outputs % (config.outs // 2 if gated else config.outs) == 0
    assert num_inputs % config.width == 0
    stages = (config.num_stages or 3) * 2 * config.width * (config.outs + config.rows)
    assert stages + 4 * config.outs * config.rows <= 225 << 10


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "gated", "strip", "shares", "ahead", "rotate"),
    [
        (4096, 4096, False, 32, 4, 512, False),
        (4096, 14336, False, 32, 4, 512, False),
        (4224, 4096, False, 32, 4, 512, False),
        (4225, 4096, False, 16, 4, 512, False),
        (6144, 4096, False, 16, 4, 512, False),
        (65535, 4096, False, 16, 4, 512, False),
        (65536, 4096, False, 64, 1, 512, True),
        (14336, 4096, True, 32, 1, 128, True),
    ],
)
def test_weights_are_cut_for_few_rows_as_was_fastest_without_tiles(
    num_outputs: int, num_inputs: int, gated: bool, strip: int, shares: int, ahead: int, rotate: bool
) -> None:
    for num_rows in (2, 16):
        config = rows_config(num_rows, num_outputs, num_inputs, gated=gated)
        assert (config.strip, config.shares, config.splits) == (strip, shares, 1)
        assert (config.ahead, config.rotate) == (ahead, rotate)
        buffers = (config.num_stages - 1) * 2 * config.span * (config.strip * (2 if gated else 1) + 16)
        programs = -(-num_outputs // config.strip)
        assert buffers <= 200 << 10, "what a multiprocessor has"
        assert programs > 132 or buffers > 113 << 10, (
            "two would share a multiprocessor, and another have none"
        )


@pytest.mark.gpu
@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize(("model", "name"), PRODUCTS)
def test_products_equal_the_reference_as_they_are_served(model: str, name: str) -> None:
    weight = drawn_weight(*MODELS[model][name])
    num_outputs, num_inputs, gated = sizes_of(model, name)
    bias = random(num_outputs, dtype=torch.bfloat16) if (model, name) in HAS_BIAS else None
    for num_rows in NUMS_OF_ROWS:
        x = random(num_rows, num_inputs, dtype=torch.bfloat16)
        # Rows of a neighbour, which must stay as they are.
        residual = random(num_rows + 8, num_outputs, dtype=torch.bfloat16)
        first = served(name, x, weight, bias, residual)
        if gated:
            assert_rows_close(first, reference.gated_linear(rms_norm(x, None, EPS), weight))
        elif name == "qkv":
            assert_rows_close(first, reference.linear(x, weight, bias))
        else:
            assert_rows_close(first, reference.linear_add(residual[:num_rows], x, weight))
        assert torch.equal(first, served(name, x, weight, bias, residual))


def served(name: str, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """A product as it is served, into memory of what is not a number, or onto rows of the residual."""
    if name == "gate_up":
        poison = x.new_full((len(x), len(weight) // 2), float("nan"))
        del poison
        return gated_linear(x, weight, bias, eps=EPS)
    held = residual.clone()
    out = held[: len(x)]
    if name == "qkv":
        out.fill_(float("nan"))
        linear(x, weight, bias, out=out)
    else:
        linear_add_(out, x, weight, bias)
    assert torch.equal(held[len(x) :], residual[len(x) :])
    return out


def assert_rows_close(actual: Tensor, expected: Tensor) -> None:
    """Each row by itself: a wrong one among 64 would hardly be seen."""
    for row in range(len(actual)):
        assert_close(actual[row], expected[row])


@pytest.mark.gpu
@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("num_rows", [2, 9, 16])
@pytest.mark.parametrize("sizes", VOCABULARIES)
def test_logits_equal_the_reference(sizes: tuple[int, int], num_rows: int) -> None:
    x, weight = random(num_rows, sizes[1], dtype=torch.bfloat16), drawn_weight(*sizes)
    out = torch.full((num_rows, sizes[0]), float("nan"), dtype=torch.bfloat16, device=DEVICE)
    assert_close(linear(x, weight, out=out), reference.linear(x, weight))


@pytest.mark.gpu
@pytest.mark.usefixtures("seeded")
@pytest.mark.parametrize("num_rows", [16, 24, 32, 48, 64])
@pytest.mark.parametrize("model", MODELS)
def test_layers_are_repeated_bit_for_bit(model: str, num_rows: int) -> None:
    """A graph launches a product before the one ahead of it has ended: what it reads early must be settled."""
    take_steps, expected = layers_of(model, num_rows)
    eager = [tensor.clone() for tensor in take_steps()]
    error = (eager[0].double() - expected.double()).norm(dim=1) / expected.double().norm(dim=1)
    assert error.max() < 2e-2
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = take_steps()
    for _ in range(20):
        for out in outputs:
            out.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs, eager, strict=True))


def layers_of(model: str, num_rows: int) -> tuple[Callable[[], list[Tensor]], Tensor]:
    """Three layers one after another, and what the first is to make."""
    sizes, hidden = MODELS[model], MODELS[model]["o"][0]
    layers: list[dict[str, Any]] = [
        {name: drawn_weight(*size) for name, size in sizes.items()} for _ in range(3)
    ]
    biases: dict[str, Any] = dict.fromkeys(("o_bias", "gate_up_bias", "down_bias", "qkv_bias"))
    if (model, "qkv") in HAS_BIAS:
        biases["qkv_bias"] = random(sizes["qkv"][0], dtype=torch.bfloat16)
    begin = random(num_rows, hidden, dtype=torch.bfloat16)
    attended = random(num_rows, sizes["o"][1], dtype=torch.bfloat16)
    residual = torch.empty_like(begin)

    def take_steps() -> list[Tensor]:
        residual.copy_(begin)
        made, inputs = [], attended
        for layer in layers:
            made.append(between_attentions(residual, inputs, **layer, **biases, eps=EPS))
            inputs = made[-1][:, : sizes["o"][1]]
        return [*made, residual]

    expected = reference.between_attentions(
        begin, attended, **layers[0], qkv_bias=biases["qkv_bias"], eps=EPS
    )
    return take_steps, expected[1]


def test_down_of_a_feed_forward_block_is_not_for_tiles_from_33_rows_on() -> None:
    assert suits_tiles(32, 4096, 12288, gated=False)
    assert not suits_tiles(33, 4096, 12288, gated=False)  # the narrowest such block
    assert suits_tiles(33, 4096, 12160, gated=False)
