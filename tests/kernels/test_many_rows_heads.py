"""The product of many rows that leaves heads rotated and cached, against torch references, and where it is chosen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import dispatch
from quire_kernels.dispatch import projection
from quire_kernels.linear.tiling import MANY_ROWS, TALL, WIDE, suits_heads
from quire_kernels.rotary.heads import rotary_embedding_cache

from tests.kernels.many_rows_case import assert_close, head_places, on_hopper, random, rotate_after

many_rows = pytest.importorskip("quire_kernels.linear.many_rows", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("seeded")

CONFIGS = [WIDE, TALL, replace(TALL, max_pieces=1)]


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_kv_heads", "num_inputs"),
    [(1, 2, 1, 64), (63, 5, 1, 320), (513, 32, 8, 512), (777, 28, 4, 3584), (4099, 16, 8, 1024)],
)
def test_heads_leave_rotated_and_cached(
    num_rows: int, num_heads: int, num_kv_heads: int, num_inputs: int, dtype: torch.dtype
) -> None:
    num_heads += num_heads % 2
    x = random(num_rows, num_inputs, dtype=dtype)
    weight = random((num_heads + 2 * num_kv_heads) * 128, num_inputs, dtype=dtype) / num_inputs**0.5
    for config in CONFIGS:
        places = head_places(num_rows, num_kv_heads, dtype)
        queries = many_rows.linear_many_rows_heads(x, weight, places, config=config)
        # The product as it would have been stored: rotation alone is compared, and to the last place but one.
        product = many_rows.linear_many_rows(x, weight, config=config)
        expected = rotate_after(product, places)
        for actual, truth in zip((queries, places.k_cache, places.v_cache), expected, strict=True):
            assert torch.equal(actual.isnan(), truth.isnan())
            assert_close(actual.nan_to_num(), truth.nan_to_num())
            assert torch.allclose(actual.float(), truth.float(), rtol=0.01, atol=0.01, equal_nan=True)
        assert torch.equal(places.v_cache.nan_to_num(), expected[2].nan_to_num())


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize(("num_rows", "num_heads"), [(2048, 32), (4099, 28)])
def test_heads_equal_those_of_two_launches_bit_for_bit(num_rows: int, num_heads: int) -> None:
    x, weight = random(num_rows, 512), random((num_heads + 16) * 128, 512) / 512**0.5
    places = head_places(num_rows, 8)
    queries = many_rows.linear_many_rows_heads(x, weight, places)
    product = many_rows.linear_many_rows(x, weight).view(num_rows, -1, 128)
    q, k, v = product.split((num_heads, 8, 8), dim=1)
    caches = [torch.full_like(places.k_cache, float("nan")) for _ in range(2)]
    expected = rotary_embedding_cache(q, k, v, places.cos_sin, places.positions, *caches, places.slot_mapping)
    assert torch.equal(queries, expected.flatten(1))
    assert torch.equal(places.k_cache.nan_to_num(), caches[0].nan_to_num())
    assert torch.equal(places.v_cache.nan_to_num(), caches[1].nan_to_num())


@pytest.mark.gpu
@on_hopper
def test_projection_chooses_the_kernel_that_rotates_and_graphs_equal_it() -> None:
    x, weight = random(4096, 2048), random(6144, 2048) / 45
    places = head_places(4096, 8)
    eager = dispatch.project_heads(x, weight, None, places, eps=1e-5)
    assert eager.shape == (4096, 4096)
    held = places.k_cache.clone(), places.v_cache.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = dispatch.project_heads(x, weight, None, places, eps=1e-5)
    for _ in range(3):
        captured.fill_(float("nan"))
        places.k_cache.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, eager)
        assert torch.equal(places.k_cache.nan_to_num(), held[0].nan_to_num())
        assert torch.equal(places.v_cache.nan_to_num(), held[1].nan_to_num())
    assert dispatch.project_heads(x[:64], weight, None, head_places(64, 8), eps=1e-5).shape == (64, 6144)


class HeadsKernel:
    """As the module of the kernel is to the dispatch: it suits all that it is asked for, and heads are one wide, others two."""

    def suits_heads(self, *_: Any) -> bool:
        return True

    def linear_many_rows_heads(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x[:, :1]

    def suits(self, *_: Any, **__: Any) -> bool:
        return True

    def linear_many_rows(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x[:, :2]


@pytest.fixture
def heads_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "gluon_module", lambda name: HeadsKernel())
    monkeypatch.setattr(dispatch.device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(dispatch.device, "is_hopper", lambda device: True)


@pytest.mark.usefixtures("heads_kernel")
@pytest.mark.parametrize(
    ("changes", "width"),
    [
        ({}, 1),
        ({"num_rows": MANY_ROWS - 1}, 64),
        ({"dtype": torch.float32}, 64),
        ({"bias": torch.zeros(384)}, 64),
        ({"told": False}, 2),
    ],
    ids=["many rows", "fewer rows", "float32", "a bias", "not told where"],
)
def test_heads_are_rotated_by_their_projection_where_it_can(
    changes: dict[str, Any], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"num_rows": MANY_ROWS, "dtype": torch.bfloat16, "bias": None, "told": True, **changes}
    x, weight = (torch.zeros(size, 64, dtype=case["dtype"]) for size in (case["num_rows"], 384))
    places = head_places(case["num_rows"], 1, device="cpu") if case["told"] else None
    monkeypatch.setattr(projection, "linear", lambda x, weight, bias: x)
    monkeypatch.setattr(projection, "rms_norm", lambda x, weight, eps: x)
    made = dispatch.project_heads(x, weight, case["bias"], places, eps=1e-5)
    assert made.shape == (case["num_rows"], width)


@pytest.mark.usefixtures("heads_kernel")
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_of_many_rows_with_a_bias_are_of_the_library(
    with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projection, "_our_product", lambda *_, **__: None)
    x, weight = (torch.zeros(size, 64, dtype=torch.bfloat16) for size in (MANY_ROWS, 384))
    made = dispatch.linear(x, weight, weight[:, 0] if with_bias else None)
    assert made.shape == (MANY_ROWS, 384 if with_bias else 2)


@pytest.mark.usefixtures("heads_kernel")
def test_a_projection_behind_a_norm_is_told_where_heads_go(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(MANY_ROWS, 64, dtype=torch.bfloat16)
    monkeypatch.setattr(projection, "_our_product", lambda *_, **__: None)
    for name in ("linear_add_", "gated_linear"):
        monkeypatch.setattr(projection, name, lambda *_, **__: x)
    layer = dict.fromkeys(("o", "gate_up", "down", "qkv"), x)
    no_bias = dict.fromkeys(("o_bias", "gate_up_bias", "down_bias", "qkv_bias"))
    places = head_places(MANY_ROWS, 1, device="cpu")
    made = dispatch.between_attentions(x, x, **layer, **no_bias, eps=1e-5, places=places)
    assert made.shape == (MANY_ROWS, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cos_sin": torch.zeros(8, 64)}, "cos_sin"),
        ({"cos_sin": torch.zeros(8, 256)[:, ::2]}, "cos_sin"),
        ({"positions": torch.zeros(7, dtype=torch.int64)}, "7 positions"),
        ({"k_cache": torch.zeros(2, 16, 8, 128).to(torch.float8_e4m3fn)}, "k_cache is of"),
        ({"v_cache": torch.zeros(2, 16, 8, 64, dtype=torch.bfloat16)}, "v_cache is of"),
        ({"v_cache": torch.zeros(2, 16, 8, 132, dtype=torch.bfloat16)[..., :128]}, "v_cache has strides"),
        ({"v_cache": torch.zeros(3, 16, 8, 128, dtype=torch.bfloat16)}, "must be alike"),
    ],
)
def test_heads_of_another_shape_or_type_are_left_to_two_kernels(
    changes: dict[str, Tensor], reason: str
) -> None:
    x, weight = (torch.zeros(size, 64, dtype=torch.bfloat16) for size in (8, 6144))
    places = head_places(8, 8, device="cpu")
    assert many_rows.misfit_of_heads(x, weight, places) is None
    unfit = replace(places, **changes)
    assert reason in many_rows.misfit_of_heads(x, weight, unfit)
    assert not many_rows.suits_heads(x, weight, unfit)
    with pytest.raises(ValueError, match=reason):
        many_rows.linear_many_rows_heads(x, weight, unfit)


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "expected"),
    [
        (2047, 6144, 4096, False),
        (2048, 6144, 4096, True),
        (8192, 6144, 2048, True),
        (8192, 6144, 1024, False),
        (8192, 4096, 4096, False),
    ],
)
def test_only_products_of_heads_that_were_faster_are_taken(
    num_rows: int, num_outputs: int, num_inputs: int, expected: bool
) -> None:
    assert suits_heads(num_rows, num_outputs, num_inputs) is expected


def test_heads_of_a_weight_must_come_in_pairs() -> None:
    x, places = torch.zeros(8, 64, dtype=torch.bfloat16), head_places(8, 8, device="cpu")
    for num_outputs in (6144 + 128, 2048):
        weight = torch.zeros(num_outputs, 64, dtype=torch.bfloat16)
        assert "in pairs" in (many_rows.misfit_of_heads(x, weight, places) or "")
