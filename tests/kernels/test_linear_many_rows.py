"""The product of many rows on Hopper and what it folds in, against torch references."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import dispatch
from quire_kernels.dispatch import projection
from quire_kernels.linear import reference
from quire_kernels.linear.tiling import (
    MANY_ROWS,
    TALL,
    TALL_GATED,
    WIDE,
    ManyRowsConfig,
    cut_tiles,
    many_rows_config,
    suits_heads,
    suits_many_rows,
)
from quire_kernels.rotary.heads import rotary_embedding_cache
from quire_kernels.rotary.places import HeadPlaces
from quire_kernels.rotary.reference import rotary_embedding_and_cache

many_rows = pytest.importorskip("quire_kernels.linear.many_rows", exc_type=ImportError)

ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU; Gluon has no interpreter")
CONFIGS = [WIDE, TALL, replace(TALL, max_pieces=1)]
SIZES = [(14336, 4096), (18944, 3584), (3072, 1024), (6144, 4096), (4096, 14336), (128, 64)]
SHAPES = [
    (1, 128, 64),
    (63, 256, 320),
    (200, 640, 512),
    (513, 3072, 1024),
    (640, 4096, 4096),
    (777, 4096, 14336),
    (2049, 2176, 3584),
    (8192, 1024, 4096),
]


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(21)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < 6e-3


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_rows", "num_outputs", "num_inputs"), SHAPES)
def test_product_equals_reference(
    num_rows: int, num_outputs: int, num_inputs: int, dtype: torch.dtype
) -> None:
    x = random(num_rows, num_inputs, dtype=dtype)
    weight = random(2 * num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5
    residual = random(num_rows, 2 * num_outputs, dtype=dtype)
    for config in CONFIGS:
        out = torch.full_like(residual, float("nan"))
        assert many_rows.linear_many_rows(x, weight, out=out, config=config) is out
        assert_close(out, reference.linear(x, weight))
        added = many_rows.linear_many_rows(x, weight, add=True, out=residual.clone(), config=config)
        assert_close(added, reference.linear_add(residual, x, weight))
    for config in (*CONFIGS, TALL_GATED):
        out = torch.full_like(residual[:, :num_outputs].contiguous(), float("nan"))
        many_rows.linear_many_rows(x, weight, gated=True, out=out, config=config)
        assert_close(out, reference.gated_linear(x, weight))


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 3e4])
def test_gates_of_any_size_are_rounded_as_by_two_kernels(scale: float) -> None:
    x, weight = random(192, 64), random(256, 64)
    weight[:128] *= scale
    gate, up = reference.linear(x, weight).float().chunk(2, dim=1)
    expected = (torch.nn.functional.silu(gate) * up).to(x.dtype)
    out = many_rows.linear_many_rows(x, weight, gated=True)
    assert torch.isfinite(out).all()
    # Sums in another order move a product by a place of its type at most.
    assert torch.allclose(out.float(), expected.float(), rtol=0.03, atol=1e-3 * scale)


@pytest.mark.gpu
@on_hopper
def test_rows_of_a_wider_tensor_are_taken_where_they_lie() -> None:
    wide, weight = random(300, 512), random(384, 256)
    assert_close(many_rows.linear_many_rows(wide[:, 256:], weight), reference.linear(wide[:, 256:], weight))


@pytest.mark.gpu
@on_hopper
def test_graph_equals_eager_launches_bit_for_bit() -> None:
    x, weight = random(1500, 2048), random(2 * 12288, 2048)
    assert many_rows.suits(x, weight, gated=True)
    eager = [dispatch.gated_linear(x, weight), many_rows.linear_many_rows(x, weight)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [dispatch.gated_linear(x, weight), many_rows.linear_many_rows(x, weight)]
    for _ in range(3):
        graph.replay()
        assert all(map(torch.equal, eager, captured))


def head_places(
    num_rows: int, num_kv_heads: int, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> HeadPlaces:
    """Tokens in any order of positions and slots, and caches that hold no number yet."""
    shape = (2, num_rows // 16 + 2, 16, num_kv_heads, 128)
    caches = torch.full(shape, float("nan"), dtype=dtype, device=device)
    return HeadPlaces(
        cos_sin=torch.randn(num_rows, 128, device=device),
        positions=torch.randperm(num_rows, device=device),
        k_cache=caches[0],
        v_cache=caches[1],
        slot_mapping=torch.randperm(num_rows, device=device) + 16,
    )


def rotate_after(product: Tensor, places: HeadPlaces) -> tuple[Tensor, Tensor, Tensor]:
    """What the reference makes of a product: its queries, and the caches."""
    num_kv_heads = places.k_cache.shape[2]
    q, k, v = product.view(len(product), -1, 128).split(
        (product.shape[1] // 128 - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1
    )
    k_cache, v_cache = (torch.full_like(places.k_cache, float("nan")) for _ in range(2))
    rotated = rotary_embedding_and_cache(
        q, k, v, places.cos_sin, places.positions, k_cache, v_cache, places.slot_mapping
    )
    return rotated.flatten(1), k_cache, v_cache


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
    eager = dispatch.project_heads(x, weight, None, places)
    assert eager.shape == (4096, 4096)
    held = places.k_cache.clone(), places.v_cache.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = dispatch.project_heads(x, weight, None, places)
    for _ in range(3):
        captured.fill_(float("nan"))
        places.k_cache.fill_(float("nan"))
        graph.replay()
        assert torch.equal(captured, eager)
        assert torch.equal(places.k_cache.nan_to_num(), held[0].nan_to_num())
        assert torch.equal(places.v_cache.nan_to_num(), held[1].nan_to_num())
    assert dispatch.project_heads(x[:64], weight, None, head_places(64, 8)).shape == (64, 6144)


class HeadsKernel:
    """As the module of the kernel is to the dispatch: it suits all that it is asked for."""

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
    ("changes", "rotates"),
    [
        ({}, True),
        ({"num_rows": MANY_ROWS - 1}, False),
        ({"dtype": torch.float32}, False),
        ({"bias": torch.zeros(384)}, False),
        ({"told": False}, False),
    ],
    ids=["many rows", "fewer rows", "float32", "a bias", "not told where"],
)
def test_heads_are_rotated_by_their_projection_where_it_can(
    changes: dict[str, Any], rotates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"num_rows": MANY_ROWS, "dtype": torch.bfloat16, "bias": None, "told": True, **changes}
    x, weight = (torch.zeros(size, 64, dtype=case["dtype"]) for size in (case["num_rows"], 384))
    places = head_places(case["num_rows"], 1, device="cpu") if case["told"] else None
    monkeypatch.setattr(projection, "linear", lambda x, weight, bias: x)
    made = dispatch.project_heads(x, weight, case["bias"], places)
    assert made.shape == (case["num_rows"], 1 if rotates else 64)


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


@pytest.mark.gpu
@on_hopper
def test_unfit_tensors_are_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        many_rows.linear_many_rows(random(2, 64), random(128, 128))
    with pytest.raises(ValueError, match="16 bits"):
        many_rows.linear_many_rows(random(2, 64, dtype=torch.float32), random(128, 64, dtype=torch.float32))
    with pytest.raises(ValueError, match="no gate"):
        many_rows.linear_many_rows(random(2, 64), random(128, 64), add=True)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SIZES)
def test_every_tile_is_whole_or_in_pieces_for_idle_multiprocessors(
    num_outputs: int, num_inputs: int, gated: bool
) -> None:
    for num_rows in (1, 192, 256, 512, 640, 768, 1024, 2048, 5000, 8192):
        config = many_rows_config(num_rows, gated=gated)
        tiling = cut_tiles(config, num_rows, num_outputs, num_inputs, 132, gated=gated)
        in_pieces, rest = divmod(tiling.num_items - tiling.num_whole, tiling.num_pieces)
        blocks = -(-num_rows // (64 * config.groups))
        assert rest == 0
        assert tiling.num_whole + in_pieces == blocks * tiling.num_strips
        assert tiling.num_strips * (128 if gated else 256) >= num_outputs
        assert in_pieces == 0 or (tiling.num_whole % 132 == 0 and in_pieces * tiling.num_pieces <= 132)
        assert tiling.num_pieces <= max(1, num_inputs // 1024)


@pytest.mark.parametrize(("gated", "tall"), [(True, TALL_GATED), (False, TALL)])
def test_tiles_are_tall_from_where_that_was_faster(gated: bool, tall: ManyRowsConfig) -> None:
    configs = [many_rows_config(num_rows, gated=gated) for num_rows in (1, 1024, 4095, 4096, 8192)]
    assert configs == [WIDE, WIDE, WIDE, tall, tall]
    assert tall.to_and_fro == gated


@pytest.mark.parametrize(
    ("config", "shape", "num_whole", "num_pieces", "num_items"),
    [
        (TALL, (640, 4096, 4096), 0, 2, 128),  # 64 tiles
        (WIDE, (640, 4096, 4096), 80, 1, 80),  # pieces of 80 would be more than there are multiprocessors
        (WIDE, (640, 4096, 14336), 80, 1, 80),
        (WIDE, (640, 1024, 14336), 0, 4, 80),  # 20 tiles, of which six pieces would find a place
        (TALL, (2048, 3584, 4096), 132, 4, 220),  # 22 of 154 tiles in four
        (WIDE, (256, 1024, 3072), 0, 3, 24),  # 48 steps, 16 of them for a piece
        (WIDE, (256, 1024, 1984), 8, 1, 8),
        (WIDE, (256, 1024, 2048), 0, 2, 16),
        (WIDE, (2112, 2048, 4096), 132, 4, 148),
        (replace(WIDE, max_pieces=1), (256, 1024, 4096), 8, 1, 8),
    ],
)
def test_tiles_of_a_last_turn_are_in_pieces_where_multiprocessors_would_idle(
    config: ManyRowsConfig, shape: tuple[int, int, int], num_whole: int, num_pieces: int, num_items: int
) -> None:
    tiling = cut_tiles(config, *shape, 132, gated=False)
    assert (tiling.num_whole, tiling.num_pieces, tiling.num_items) == (num_whole, num_pieces, num_items)
    assert tiling.num_pieces <= config.max_pieces


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "gated", "suited"),
    [
        (8192, 14336, 4096, True, True),
        (1024, 14336, 4096, True, True),
        (2048, 3072, 1024, True, True),
        (1024, 3072, 1024, True, False),
        (512, 14336, 4096, True, False),
        (1023, 14336, 4096, True, False),
        (1024, 4096, 4096, True, False),
        (1024, 4104, 4096, True, True),
        (2047, 4096, 4096, True, False),
        (2048, 4096, 4096, True, True),
        (8192, 6144, 4096, False, True),
        (8192, 4096, 4096, False, False),
        (1024, 6144, 4096, False, False),
        (4095, 6144, 4096, False, False),
        (4096, 6144, 4096, False, True),
        (4096, 6136, 4096, False, False),
        (4096, 6144, 2048, False, True),
        (4096, 6144, 1984, False, False),
    ],
)
def test_only_products_that_were_faster_are_taken(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, suited: bool
) -> None:
    assert suits_many_rows(num_rows, num_outputs, num_inputs, gated=gated) == suited
