"""What lies between two attentions, whichever kernels make it, against the torch reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels import add_norm_project_, between_attentions
from quire_kernels.dispatch import device, projection
from quire_kernels.gpu import gluon_module
from quire_kernels.linear import reference
from torch import Tensor

Q_SIZE, HIDDEN, INNER, OUT = 2048, 1024, 3072, 4096
EPS = 1e-6
NO_BIAS: dict[str, Any] = {"o_bias": None, "gate_up_bias": None, "down_bias": None, "qkv_bias": None}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(21)


def drawn(
    *shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> Tensor:
    return (torch.randn(*shape, device=device) * scale).to(dtype)


def weights(dtype: torch.dtype, device: str = "cuda") -> dict[str, Any]:
    return {
        "o": drawn(HIDDEN, Q_SIZE, scale=0.02, dtype=dtype, device=device),
        "gate_up": drawn(2 * INNER, HIDDEN, scale=0.02, dtype=dtype, device=device),
        "down": drawn(HIDDEN, INNER, scale=0.02, dtype=dtype, device=device),
        "qkv": drawn(OUT, HIDDEN, scale=0.02, dtype=dtype, device=device),
    }


def leave_nan_behind() -> None:
    """Fills the memory that the next tensors will be given."""
    poison = [
        torch.full((64, size), float("nan"), device="cuda", dtype=torch.bfloat16) for size in (INNER, OUT)
    ]
    del poison


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def layer_on_cpu(num_rows: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """A layer and its inputs."""
    rows = {
        name: drawn(num_rows, size, dtype=dtype, device="cpu")
        for name, size in (("attended", Q_SIZE), ("residual", HIDDEN))
    }
    return {**rows, **weights(dtype, "cpu"), "qkv_bias": None}


def taken(operands: dict[str, Any]) -> Tensor:
    return between_attentions(**{**NO_BIAS, **operands}, eps=EPS)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 3, 8, 9, 16, 17, 32, 33, 50, 64, 65])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_layer_equals_the_reference(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    layer = weights(dtype)
    bias = drawn(OUT, dtype=dtype) if with_bias else None
    wider = drawn(num_rows + 3, HIDDEN, dtype=dtype)
    before, residual = wider.clone(), wider[:num_rows]
    attended = drawn(num_rows, Q_SIZE, dtype=dtype)
    leave_nan_behind()
    qkv = between_attentions(residual, attended, **layer, **{**NO_BIAS, "qkv_bias": bias}, eps=EPS)
    expected = reference.between_attentions(before[:num_rows], attended, **layer, qkv_bias=bias, eps=EPS)
    assert error(residual, expected[0]) < 6e-3
    assert error(qkv, expected[1]) < 6e-3
    assert torch.equal(wider[num_rows:], before[num_rows:])


@pytest.mark.parametrize(
    ("num_rows", "device"),
    [
        (3, "cpu"),
        *(
            pytest.param(rows, "cuda", marks=pytest.mark.gpu)
            for rows in (1, 2, 16, 33, 64, 80, 144, 256, 257)
        ),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sum_and_the_gate_of_its_norm_equal_the_reference(
    num_rows: int, device: str, dtype: torch.dtype
) -> None:
    layer = weights(dtype, device)
    residual, attended = (drawn(num_rows, size, dtype=dtype, device=device) for size in (HIDDEN, Q_SIZE))
    options: dict[str, Any] = {
        "eps": EPS,
        "next_weight": layer["gate_up"],
        "next_bias": None,
        "gated": True,
    }
    expected = reference.add_norm_project(residual, attended, layer["o"], None, **options)
    if device == "cuda":
        leave_nan_behind()
    gated = add_norm_project_(residual, attended, layer["o"], None, **options)
    assert error(residual, expected[0]) < 6e-3
    assert error(gated, expected[1]) < 6e-3


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [16, 80])
def test_products_too_large_for_float16_before_their_norm_are_scaled_before_they_are_rounded(
    num_rows: int,
) -> None:
    layer, attended = weights(torch.float16), drawn(num_rows, Q_SIZE, dtype=torch.float16)
    residual = 6e4 * drawn(num_rows, HIDDEN, dtype=torch.float16).sign()
    options: dict[str, Any] = {"eps": EPS, "next_weight": layer["qkv"], "next_bias": None}
    added, expected = reference.add_norm_project(residual, attended, layer["o"], None, **options)
    assert (added.float() @ layer["qkv"].float().T).abs().max() > torch.finfo(torch.float16).max
    assert error(add_norm_project_(residual, attended, layer["o"], None, **options), expected) < 6e-3


@pytest.mark.gpu
def test_what_is_not_a_number_stays_in_its_row() -> None:
    layer = weights(torch.bfloat16)
    residual, attended = drawn(4, HIDDEN), drawn(4, Q_SIZE)
    residual[1, 5], attended[2, 7] = float("nan"), float("inf")
    qkv = between_attentions(residual, attended, **layer, **NO_BIAS, eps=EPS)
    assert qkv[1:3].isnan().all()
    assert not qkv[0].isnan().any()
    assert not qkv[3].isnan().any()


def test_a_kernel_that_cannot_be_imported_is_none() -> None:
    assert gluon_module("quire_kernels.linear.nowhere") is None


@pytest.mark.parametrize(
    ("num_rows", "o", "gate_up", "down", "qkv"),
    [
        (2, "held", "tiles", "held", "held"),
        (16, "held", "tiles", "held", "held"),
        (17, "held", "tiles", "held", "tiles"),
        (32, "held", "tiles", "held", "tiles"),
        (33, "held", "tiles", "tiles", "tiles"),
        (64, "held", "tiles", "tiles", "tiles"),
        (65, "tiles", "tiles", "tiles", "tiles"),
        (256, "tiles", "tiles", "tiles", "tiles"),
    ],
)
@pytest.mark.parametrize("on_hopper", [False, True])
def test_the_kernel_that_was_fastest_is_taken(
    num_rows: int, o: str, gate_up: str, down: str, qkv: str, on_hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    monkeypatch.setattr(device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(device, "holds_deep_pipelines", lambda device: True)
    monkeypatch.setattr(device, "is_hopper", lambda device: on_hopper)
    layer = weights(torch.bfloat16, "cpu")
    names = {"linear_held_rows": "held", "linear_tiles_hopper": "tiles", "linear_rows": "rows"}
    for name, expected in (("o", o), ("gate_up", gate_up), ("down", down), ("qkv", qkv)):
        x = torch.zeros(num_rows, layer[name].shape[1], dtype=torch.bfloat16)
        product = projection._our_product(x, layer[name], None, gated=name == "gate_up")  # pyright: ignore[reportPrivateUsage]
        if on_hopper or expected == "held":
            assert product is not None
            assert names[product.__name__] == expected
        else:  # after Hopper
            assert product is None if num_rows > 64 else names[product.__name__] == "rows"


def test_a_triton_without_gluon_takes_the_kernel_for_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(device, "holds_deep_pipelines", lambda device: True)
    monkeypatch.setattr(device, "is_hopper", lambda device: True)
    monkeypatch.setattr(projection, "gluon_module", lambda name: None)
    x, weight = (torch.zeros(rows, HIDDEN, dtype=torch.bfloat16) for rows in (16, 2 * INNER))
    product = projection._our_product(x, weight, None, gated=True)  # pyright: ignore[reportPrivateUsage]
    assert product is not None
    assert product.__name__ == "linear_rows"


class NotedProducts:
    """Products of ours that note how they were called, and compute as the reference does."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Tensor:
        self.calls.append(
            {name for name, value in options.items() if value is not None and value is not False}
        )
        if options.get("leave_squares"):
            added, squares = reference.linear_add_squares(options["out"], x, weight, bias, num_tiles=16)
            options["out"].copy_(added)
            return squares
        if options.get("squares") is not None:
            product = reference.normed_gated_linear if options.get("gated") else reference.normed_linear
            return product(x, options["squares"], weight, bias, eps=options["eps"])
        if options.get("add"):
            return options["out"].copy_(reference.linear_add(options["out"], x, weight, bias))
        return (reference.gated_linear if options.get("gated") else reference.linear)(x, weight, bias)


def made_by(
    monkeypatch: pytest.MonkeyPatch, ours: Any, operands: dict[str, Any], library: str | None = None
) -> Tensor:
    """What lies between two attentions, if products but that by the weight `library` were ours."""
    by_library = operands.get(library or "")
    monkeypatch.setattr(
        projection,
        "_our_product",
        lambda x, weight, bias, gated=False: None if weight is by_library else ours,
    )
    return taken(operands)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_between_products_of_ours_are_no_launches(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, ours = layer_on_cpu(80, dtype), NotedProducts()
    expected = reference.between_attentions(**operands, eps=EPS)
    monkeypatch.setattr(projection, "rms_norm", None)
    assert error(made_by(monkeypatch, ours, operands), expected[1]) < 1e-2
    assert error(operands["residual"], expected[0]) < 1e-2
    first, second = {"out", "add", "leave_squares"}, {"squares", "eps"}
    assert ours.calls == [first, {*second, "gated"}, first, second]


@pytest.mark.parametrize("library", ["o", "gate_up", "down", "qkv"])
def test_a_norm_beside_a_product_of_the_library_is_a_launch(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, ours = layer_on_cpu(80), NotedProducts()
    expected = reference.between_attentions(**operands, eps=EPS)
    assert error(made_by(monkeypatch, ours, operands, library), expected[1]) < 1e-2
    assert error(operands["residual"], expected[0]) < 1e-2
    assert sum("leave_squares" in call for call in ours.calls) == 1
    assert sum("squares" in call for call in ours.calls) == 1


def test_norms_of_one_row_are_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, ours = layer_on_cpu(1), NotedProducts()
    made_by(monkeypatch, ours, operands)
    assert len(ours.calls) == 4
    assert not any("leave_squares" in call or "squares" in call for call in ours.calls)
