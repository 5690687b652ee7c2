"""All that lies between two attentions in one launch, against the torch reference; on a GPU alone, for Gluon has no interpreter."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels import between_attentions
from quire_kernels.linear import reference
from quire_kernels.linear.between import between_attentions_rows
from quire_kernels.linear.tuning import BetweenConfig, between_config
from torch import Tensor

HEADS, HIDDEN, INNER, OUT = 2048, 1024, 3072, 4096
EPS = 1e-6
CONFIG = BetweenConfig(num_programs=128, span=128)
NO_BIAS: dict[str, Any] = {"o_bias": None, "gate_up_bias": None, "down_bias": None, "qkv_bias": None}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(21)


def drawn(*shape: int, scale: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return (torch.randn(*shape, device="cuda") * scale).to(dtype)


def weights(dtype: torch.dtype) -> dict[str, Any]:
    return {
        "o": drawn(HIDDEN, HEADS, scale=0.02, dtype=dtype),
        "post_norm": 1 + drawn(HIDDEN, scale=0.1, dtype=dtype),
        "gate_up": drawn(2 * INNER, HIDDEN, scale=0.02, dtype=dtype),
        "down": drawn(HIDDEN, INNER, scale=0.02, dtype=dtype),
        "input_norm": 1 + drawn(HIDDEN, scale=0.1, dtype=dtype),
        "qkv": drawn(OUT, HIDDEN, scale=0.02, dtype=dtype),
    }


def leave_nan_behind() -> None:
    """Fills the memory that the next tensors will be given."""
    poison = [
        torch.full((64, size), float("nan"), device="cuda", dtype=torch.bfloat16) for size in (INNER, OUT)
    ]
    del poison


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def launched(
    residual: Tensor, attended: Tensor, layer: dict[str, Any], qkv_bias: Tensor | None = None
) -> Tensor:
    return between_attentions_rows(attended, residual, **layer, qkv_bias=qkv_bias, eps=EPS, config=CONFIG)


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_one_launch_equals_reference(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    layer = weights(dtype)
    bias = drawn(OUT, dtype=dtype) if with_bias else None
    wider = drawn(num_rows + 3, HIDDEN, dtype=dtype)
    before, residual = wider.clone(), wider[:num_rows]
    attended = drawn(num_rows, HEADS, dtype=dtype)
    leave_nan_behind()
    qkv = launched(residual, attended, layer, bias)
    expected = reference.between_attentions(before[:num_rows], attended, **layer, qkv_bias=bias, eps=EPS)
    assert error(residual, expected[0]) < 6e-3
    assert error(qkv, expected[1]) < 6e-3
    assert torch.equal(wider[num_rows:], before[num_rows:])


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [4, 16])
def test_all_operations_together_equal_one_launch_or_the_reference(num_rows: int) -> None:
    layer = weights(torch.bfloat16)
    residual, attended = drawn(num_rows, HIDDEN), drawn(num_rows, HEADS)
    other = residual.clone()
    expected = reference.between_attentions(residual, attended, **layer, qkv_bias=None, eps=EPS)
    qkv = between_attentions(residual, attended, **layer, **NO_BIAS, eps=EPS)
    assert error(residual, expected[0]) < 6e-3
    assert error(qkv, expected[1]) < 6e-3
    if num_rows == 4:
        assert torch.equal(qkv, launched(other, attended, layer))


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [3, 16])
def test_replays_of_many_layers_are_all_equal(num_rows: int) -> None:
    layers = [weights(torch.bfloat16) for _ in range(4)]
    begin, attended = drawn(num_rows, HIDDEN), drawn(num_rows, HEADS)
    residual = torch.empty_like(begin)

    def take_steps() -> list[Tensor]:
        residual.copy_(begin)
        return [launched(residual, attended, layer) for layer in layers * 8]

    eager = [*take_steps(), residual.clone()]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = take_steps()
    for _ in range(50):
        for out in outputs:
            out.fill_(float("nan"))
        graph.replay()
        assert all(
            torch.equal(mine, theirs) for mine, theirs in zip([*outputs, residual], eager, strict=True)
        )


@pytest.mark.gpu
def test_launches_of_all_sizes_follow_each_other() -> None:
    layer = weights(torch.bfloat16)
    for num_rows in (16, 2, 16, 9, 3, 16, 16):
        residual, attended = drawn(num_rows, HIDDEN), drawn(num_rows, HEADS)
        expected = reference.between_attentions(residual, attended, **layer, qkv_bias=None, eps=EPS)
        qkv = launched(residual, attended, layer)
        assert error(residual, expected[0]) < 6e-3
        assert error(qkv, expected[1]) < 6e-3


@pytest.mark.gpu
def test_what_is_not_a_number_stays_in_its_row() -> None:
    layer = weights(torch.bfloat16)
    residual, attended = drawn(4, HIDDEN), drawn(4, HEADS)
    residual[1, 5], attended[2, 7] = float("nan"), float("inf")
    qkv = launched(residual, attended, layer)
    assert qkv[1:3].isnan().all()
    assert not qkv[0].isnan().any()
    assert not qkv[3].isnan().any()


@pytest.mark.gpu
def test_unfit_tensors_are_refused() -> None:
    layer = weights(torch.bfloat16)
    with pytest.raises(ValueError, match="at most 16"):
        launched(drawn(17, HIDDEN), drawn(17, HEADS), layer)
    with pytest.raises(ValueError, match="contiguous"):
        launched(drawn(2, HIDDEN), drawn(2, 2 * HEADS)[:, :HEADS], layer)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"num_rows": 1}, False),  # products of one row have kernels of their own
        ({"num_rows": 9}, False),
        ({"num_multiprocessors": 127}, False),  # all programs must be there at once
        ({"hidden": 896, "heads": 896}, False),
        ({"inner": 4096}, False),  # more weights than registers
        ({"hidden": 4096, "heads": 4096, "inner": 14336, "outputs": 6144}, False),
    ],
)
def test_one_launch_is_chosen_where_its_weights_fit(changes: dict[str, int], fits: bool) -> None:
    shape = {
        "num_rows": 8,
        "heads": HEADS,
        "hidden": HIDDEN,
        "inner": INNER,
        "outputs": OUT,
        "num_multiprocessors": 132,
    }
    num_rows = {**shape, **changes}.pop("num_rows")
    sizes = {name: size for name, size in {**shape, **changes}.items() if name != "num_rows"}
    assert (between_config(num_rows, **sizes) is not None) == fits
