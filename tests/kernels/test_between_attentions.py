"""All that lies between two attentions in one launch, against the torch reference; on a GPU alone, for Gluon has no interpreter."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels import between_attentions
from quire_kernels.dispatch import between, device, projection
from quire_kernels.gpu import gluon_module
from quire_kernels.linear import reference
from quire_kernels.linear.tuning import BetweenConfig, between_config
from torch import Tensor

kernel = pytest.importorskip("quire_kernels.linear.between", exc_type=ImportError)

Q_SIZE, HIDDEN, INNER, OUT = 2048, 1024, 3072, 4096
EPS = 1e-6
CONFIG = BetweenConfig(num_programs=128, span=128)
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
        "post_norm": 1 + drawn(HIDDEN, scale=0.1, dtype=dtype, device=device),
        "gate_up": drawn(2 * INNER, HIDDEN, scale=0.02, dtype=dtype, device=device),
        "down": drawn(HIDDEN, INNER, scale=0.02, dtype=dtype, device=device),
        "input_norm": 1 + drawn(HIDDEN, scale=0.1, dtype=dtype, device=device),
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


def launched(
    residual: Tensor, attended: Tensor, layer: dict[str, Any], qkv_bias: Tensor | None = None
) -> Tensor:
    return kernel.between_attentions_rows(
        attended, residual, **layer, qkv_bias=qkv_bias, eps=EPS, config=CONFIG
    )


@pytest.mark.gpu
@pytest.mark.parametrize("num_rows", [1, 2, 3, 7, 8, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("with_bias", [False, True])
def test_one_launch_equals_reference(num_rows: int, with_bias: bool, dtype: torch.dtype) -> None:
    layer = weights(dtype)
    bias = drawn(OUT, dtype=dtype) if with_bias else None
    wider = drawn(num_rows + 3, HIDDEN, dtype=dtype)
    before, residual = wider.clone(), wider[:num_rows]
    attended = drawn(num_rows, Q_SIZE, dtype=dtype)
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
    residual, attended = drawn(num_rows, HIDDEN), drawn(num_rows, Q_SIZE)
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
    begin, attended = drawn(num_rows, HIDDEN), drawn(num_rows, Q_SIZE)
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
        residual, attended = drawn(num_rows, HIDDEN), drawn(num_rows, Q_SIZE)
        expected = reference.between_attentions(residual, attended, **layer, qkv_bias=None, eps=EPS)
        qkv = launched(residual, attended, layer)
        assert error(residual, expected[0]) < 6e-3
        assert error(qkv, expected[1]) < 6e-3


@pytest.mark.gpu
def test_what_is_not_a_number_stays_in_its_row() -> None:
    layer = weights(torch.bfloat16)
    residual, attended = drawn(4, HIDDEN), drawn(4, Q_SIZE)
    residual[1, 5], attended[2, 7] = float("nan"), float("inf")
    qkv = launched(residual, attended, layer)
    assert qkv[1:3].isnan().all()
    assert not qkv[0].isnan().any()
    assert not qkv[3].isnan().any()


@pytest.mark.gpu
def test_unfit_tensors_are_refused() -> None:
    layer = weights(torch.bfloat16)
    with pytest.raises(ValueError, match="at most 16"):
        launched(drawn(17, HIDDEN), drawn(17, Q_SIZE), layer)
    with pytest.raises(ValueError, match="contiguous"):
        launched(drawn(2, HIDDEN), drawn(2, 2 * Q_SIZE)[:, :Q_SIZE], layer)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"num_rows": 2}, True),
        ({"num_rows": 1}, False),  # products of one row have kernels of their own
        ({"num_rows": 9}, False),
        ({"num_multiprocessors": 128}, True),
        ({"num_multiprocessors": 127}, False),  # all programs must be there at once
        # Whole chunks of inputs, and as many outputs of each program as of any other.
        ({"hidden_size": 896, "q_size": 896}, False),
        ({"q_size": 896}, False),
        ({"q_size": 1024}, True),
        ({"intermediate_size": 1536}, False),
        ({"num_outputs": 1536}, False),
        ({"hidden_size": 2048, "intermediate_size": 2048, "num_multiprocessors": 256}, True),
        ({"hidden_size": 2048, "intermediate_size": 3072, "num_multiprocessors": 256}, False),
        # Six pieces of weights are in registers: seven are more, of whichever product.
        ({"q_size": 6144}, True),
        ({"q_size": 7168}, False),
        ({"intermediate_size": 4096}, False),
        ({"num_outputs": 6144}, True),
        ({"num_outputs": 7168}, False),
        ({"hidden_size": 4096, "q_size": 4096, "intermediate_size": 14336, "num_outputs": 6144}, False),
    ],
)
def test_one_launch_is_chosen_where_its_weights_fit(changes: dict[str, int], fits: bool) -> None:
    shape = {
        "num_rows": 8,
        "q_size": Q_SIZE,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_outputs": OUT,
        "num_multiprocessors": 132,
    }
    num_rows = {**shape, **changes}.pop("num_rows")
    sizes = {name: size for name, size in {**shape, **changes}.items() if name != "num_rows"}
    assert (between_config(num_rows, **sizes) is not None) == fits


def layer_on_cpu(num_rows: int = 4) -> dict[str, Any]:
    """What one launch would take, beside eps and its settings, if it were on a GPU."""
    rows = {
        name: drawn(num_rows, size, device="cpu")
        for name, size in (("attended", Q_SIZE), ("residual", HIDDEN))
    }
    return {**rows, **weights(torch.bfloat16, "cpu"), "qkv_bias": None}


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The launches that would be made, if the CPU were a GPU with room for them; they leave zeros."""
    made: list[Any] = []

    def note(**operands: Any) -> Tensor:
        made.append(operands)
        return torch.zeros(1)

    monkeypatch.setattr(between, "_between_config", lambda *_: CONFIG)
    monkeypatch.setattr(kernel, "between_attentions_rows", note)
    return made


def taken(operands: dict[str, Any]) -> Tensor:
    return between_attentions(**{**NO_BIAS, **operands}, eps=EPS)


def test_a_triton_without_the_language_takes_the_operations_one_by_one(
    launches: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = layer_on_cpu()
    expected = reference.between_attentions(**operands, eps=EPS)
    monkeypatch.setattr(between, "gluon_module", lambda name: None)
    assert error(taken(operands), expected[1]) < 1e-2
    assert error(operands["residual"], expected[0]) < 1e-2
    assert not launches


def test_a_kernel_that_cannot_be_imported_is_none() -> None:
    assert gluon_module("quire_kernels.linear.nowhere") is None
    assert gluon_module("quire_kernels.linear.between") is kernel


@pytest.mark.parametrize("name", ["attended", "residual", "o", "gate_up", "down", "qkv"])
def test_a_slice_of_a_wider_tensor_takes_the_operations_one_by_one(name: str, launches: list[Any]) -> None:
    operands = layer_on_cpu()
    expected = reference.between_attentions(**operands, eps=EPS)
    tensor = operands[name]
    operands[name] = torch.cat([tensor, tensor], dim=1)[:, : tensor.shape[1]]
    assert error(taken(operands), expected[1]) < 1e-2
    assert not launches
    taken({**operands, name: tensor})
    assert len(launches) == 1


@pytest.mark.parametrize(
    "name", ["attended", "o", "post_norm", "gate_up", "down", "input_norm", "qkv", "qkv_bias"]
)
def test_the_tensor_that_does_not_fit_is_named(name: str) -> None:
    operands = {**layer_on_cpu(), "qkv_bias": drawn(OUT, device="cpu")}
    assert kernel.misfit(**operands) is None
    with pytest.raises(ValueError, match=rf"^{name} is of torch.float32; it must be of torch.bfloat16"):
        kernel.between_attentions_rows(**{**operands, name: operands[name].float()}, eps=EPS, config=CONFIG)
    assert kernel.misfit(**{**operands, name: operands[name][..., :7]}) is not None


@pytest.mark.parametrize(("num_programs", "span"), [(96, 128), (128, 256), (256, 128), (64, 96)])
def test_settings_that_would_leave_something_over_are_refused(num_programs: int, span: int) -> None:
    config = BetweenConfig(num_programs=num_programs, span=span)
    with pytest.raises(ValueError, match="must divide"):
        kernel.between_attentions_rows(**layer_on_cpu(), eps=EPS, config=config)


@pytest.mark.parametrize("on_hopper", [False, True])
def test_one_launch_is_for_the_generation_that_it_ran_on(
    on_hopper: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(device, "is_hopper_or_later", lambda device: True)
    monkeypatch.setattr(device, "is_hopper", lambda device: on_hopper)
    monkeypatch.setattr(between, "num_multiprocessors", lambda device: 132)
    made: list[Any] = []
    monkeypatch.setattr(kernel, "between_attentions_rows", lambda **_: made.append(1))
    monkeypatch.setattr(between, "add_norm_project_", lambda *_, **__: None)
    taken(layer_on_cpu())
    assert len(made) == on_hopper


class NotedProducts:
    """Products of ours that note how they were called, and compute as the reference does."""

    def __init__(self) -> None:
        self.calls: list[set[str]] = []

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None, **options: Any) -> Any:
        self.calls.append(
            {name for name, value in options.items() if value is not None and value is not False}
        )
        if options.get("norm_weight") is not None:
            added, scaled, squares = reference.linear_add_scaled(
                options["out"], x, weight, bias, norm_weight=options["norm_weight"], num_tiles=16
            )
            options["out"].copy_(added)
            return scaled, squares
        if options.get("squares") is not None:
            product = reference.scaled_gated_linear if options["gated"] else reference.scaled_linear
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


def test_norms_between_products_of_ours_are_no_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, ours = layer_on_cpu(80), NotedProducts()
    expected = reference.between_attentions(**operands, eps=EPS)
    monkeypatch.setattr(projection, "rms_norm", None)
    assert error(made_by(monkeypatch, ours, operands), expected[1]) < 1e-2
    assert error(operands["residual"], expected[0]) < 1e-2
    first, second = {"out", "add", "norm_weight"}, {"squares", "eps"}
    assert ours.calls == [first, {*second, "gated"}, first, second]


@pytest.mark.parametrize("library", ["o", "gate_up", "down", "qkv"])
def test_a_norm_beside_a_product_of_the_library_is_a_launch(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, ours = layer_on_cpu(80), NotedProducts()
    expected = reference.between_attentions(**operands, eps=EPS)
    assert error(made_by(monkeypatch, ours, operands, library), expected[1]) < 1e-2
    assert error(operands["residual"], expected[0]) < 1e-2
    assert sum("norm_weight" in call for call in ours.calls) == 1
    assert sum("squares" in call for call in ours.calls) == 1


@pytest.mark.parametrize(
    ("dtype", "num_rows"), [(torch.float16, 80), (torch.float32, 80), (torch.bfloat16, 64)]
)
def test_norms_of_other_types_and_of_few_rows_are_launches(
    dtype: torch.dtype, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = {
        name: tensor if tensor is None else tensor.to(dtype)
        for name, tensor in layer_on_cpu(num_rows).items()
    }
    ours = NotedProducts()
    made_by(monkeypatch, ours, operands)
    assert len(ours.calls) == 4
    assert not any("norm_weight" in call or "squares" in call for call in ours.calls)
