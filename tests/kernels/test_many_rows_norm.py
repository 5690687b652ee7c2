"""Products of many rows that stand for those of a norm, against a float64 norm and product."""

from collections.abc import Callable
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
    Tiling,
    cut_tiles,
    many_rows_config,
)

from tests.kernels.many_rows_case import assert_close, head_places, on_hopper, random, rotate_after

many_rows = pytest.importorskip("quire_kernels.linear.many_rows", exc_type=ImportError)
many_rows_tile = pytest.importorskip("quire_kernels.linear.many_rows_tile", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("seeded")

EPS = 1e-5
NUM_PROGRAMS = 132
SHAPES = [
    (1, 128, 64),
    (192, 2304, 4096),
    (777, 640, 320),
    (4099, 2304, 512),
    (5000, 2304, 4096),
    (131_072, 128, 64),
]
PLAIN = [WIDE, TALL]
GATED = [WIDE, TALL_GATED, replace(TALL_GATED, band=2)]


@pytest.fixture(params=[False, True], ids=["before", "within"])
def within(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether products take norms in where they can, or leave them to another kernel."""
    if not request.param:
        monkeypatch.setattr(many_rows, "MAX_ROWS", 0)
    return request.param


def uneven_rows(num_rows: int, num_inputs: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows of very different sizes, one of nothing among many."""
    x = random(num_rows, num_inputs) * torch.logspace(-3, 1.5, num_rows, device="cuda")[:, None]
    x[1:2] = 0
    return x.to(dtype)


def norm_of(x: Tensor) -> Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + EPS)


def product_of_norm(x: Tensor, weight: Tensor, *, gated: bool = False) -> Tensor:
    product = norm_of(x) @ weight.double().T
    if gated:
        gate, up = product.chunk(2, dim=1)
        product = torch.nn.functional.silu(gate) * up
    return product.to(x.dtype)


def test_reference_is_that_of_the_norm() -> None:
    x, weight = torch.randn(5, 64), torch.randn(8, 64)
    squares = x.square().sum(dim=1, keepdim=True)
    wide = x.double() * torch.rsqrt(x.double().square().mean(dim=1, keepdim=True) + EPS)
    product = reference.normed_linear(x, squares, weight, eps=EPS)
    assert torch.allclose(product.double(), wide @ weight.double().T, atol=1e-4)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize(("num_rows", "num_outputs", "num_inputs"), SHAPES)
def test_product_equals_that_of_a_norm(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, dtype: torch.dtype, within: bool
) -> None:
    x = uneven_rows(num_rows, num_inputs, dtype)
    weight = random(2 * num_outputs, num_inputs, dtype=dtype) / num_inputs**0.5
    expected = product_of_norm(x, weight, gated=gated)
    for config in GATED if gated else PLAIN:
        out = torch.full_like(expected, float("nan"))
        assert many_rows.linear_many_rows(x, weight, gated=gated, eps=EPS, out=out, config=config) is out
        assert_close(out, expected)
        # Each row by itself: a wrong factor of a small row would be lost among large ones.
        assert torch.allclose(out.double(), expected.double(), rtol=0.03, atol=0.02)


@pytest.mark.gpu
@on_hopper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("num_rows", "num_heads", "num_inputs"), [(1, 32, 64), (513, 32, 512), (4099, 28, 3584), (8192, 32, 1024)]
)
def test_heads_equal_those_of_a_norm(
    num_rows: int, num_heads: int, num_inputs: int, dtype: torch.dtype, within: bool
) -> None:
    x = uneven_rows(num_rows, num_inputs, dtype)
    weight = random((num_heads + 16) * 128, num_inputs, dtype=dtype) / num_inputs**0.5
    product = product_of_norm(x, weight)
    for config in (WIDE, TALL):
        places = head_places(num_rows, 8, dtype)
        queries = many_rows.linear_many_rows_heads(x, weight, places, eps=EPS, config=config)
        expected = rotate_after(product, places)
        for actual, truth in zip((queries, places.k_cache, places.v_cache), expected, strict=True):
            assert torch.equal(actual.isnan(), truth.isnan())
            assert_close(actual.nan_to_num(), truth.nan_to_num())


@pytest.mark.gpu
@on_hopper
def test_every_replay_has_the_factors_of_its_own_rows(within: bool) -> None:
    x, gates, heads = uneven_rows(8192, 1024), random(2 * 4096, 1024) / 32, random(6144, 1024) / 32
    places = head_places(8192, 8)

    def both() -> tuple[Tensor, Tensor]:
        return (
            many_rows.linear_many_rows(x, gates, gated=True, eps=EPS),
            many_rows.linear_many_rows_heads(x, heads, places, eps=EPS),
        )

    both()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    for turn in range(4):
        x.copy_(uneven_rows(8192, 1024).roll(1000 * turn, dims=0))
        for held in (*captured, places.k_cache, places.v_cache):
            held.fill_(float("nan"))
        graph.replay()
        kept = [held.clone() for held in (*captured, places.k_cache, places.v_cache)]
        assert_close(captured[0], product_of_norm(x, gates, gated=True))
        assert all(map(torch.equal, captured, both()))
        assert torch.equal(places.k_cache.nan_to_num(), kept[2].nan_to_num())
        assert torch.equal(places.v_cache.nan_to_num(), kept[3].nan_to_num())


class NotedProducts:
    """As the module of the kernel is to the dispatch: it notes of which norms its products are to be."""

    def __init__(self, *, takes_heads: bool) -> None:
        self.takes_heads = takes_heads
        self.calls: list[tuple[str, Any]] = []

    def suits_heads(self, *_: Any) -> bool:
        return self.takes_heads

    def suits(self, *_: Any, **__: Any) -> bool:
        return True

    def linear_many_rows_heads(self, x: Tensor, *_: Any, eps: float | None) -> Tensor:
        self.calls.append(("heads", eps))
        return x

    def linear_many_rows(
        self, x: Tensor, weight: Tensor, *, gated: bool = False, eps: float | None = None
    ) -> Tensor:
        self.calls.append(("gated" if gated else "plain", eps))
        return x


@pytest.mark.parametrize(
    ("dtype", "num_rows", "takes_heads", "expected"),
    [
        (torch.bfloat16, MANY_ROWS, True, [("gated", EPS), ("heads", EPS)]),
        (torch.float16, MANY_ROWS, False, [("gated", EPS), ("plain", EPS)]),
        (torch.bfloat16, MANY_ROWS - 1, True, []),
        (torch.float32, MANY_ROWS, True, []),
    ],
)
def test_a_norm_before_a_product_of_many_rows_is_no_launch(
    dtype: torch.dtype,
    num_rows: int,
    takes_heads: bool,
    expected: list[tuple[str, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many, launched = NotedProducts(takes_heads=takes_heads), list[float]()

    def norm(x: Tensor, weight: None, eps: float) -> Tensor:
        launched.append(eps)
        return x

    monkeypatch.setattr(projection, "gluon_module", lambda name: many)
    monkeypatch.setattr(dispatch.device, "runs_triton", lambda tensor: True)
    monkeypatch.setattr(dispatch.device, "is_hopper", lambda device: True)
    monkeypatch.setattr(projection, "_our_product", lambda *_, **__: None)
    monkeypatch.setattr(projection, "rms_norm", norm)
    monkeypatch.setattr(projection, "linear", lambda x, weight, bias: x)
    monkeypatch.setattr(projection, "silu_and_mul", lambda x: x)
    x = torch.zeros(num_rows, 64, dtype=dtype)
    layer = dict.fromkeys(("o", "gate_up", "down", "qkv"), torch.zeros(64, 64, dtype=dtype))
    no_bias = dict.fromkeys(("o_bias", "gate_up_bias", "down_bias", "qkv_bias"))
    places = head_places(num_rows, 1, device="cpu")
    dispatch.between_attentions(x, x, **layer, **no_bias, eps=EPS, places=places)
    assert many.calls == expected
    assert launched == ([] if expected else [EPS, EPS])


def test_a_product_that_adds_is_refused_a_norm() -> None:
    x, weight, out = (torch.zeros(size, dtype=torch.bfloat16) for size in ((2, 64), (128, 64), (2, 128)))
    with pytest.raises(ValueError, match="no norm"):
        many_rows.linear_many_rows(x, weight, out=out, add=True, eps=EPS)


class NotedLaunches:
    """As a kernel is to its launcher: it notes of which rows, and whether it was to norm them."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, bool]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda x, *_, NORM, **__: self.made.append((x, NORM))


@pytest.mark.parametrize(
    ("num_rows", "eps", "norms"), [(256, EPS, True), (257, EPS, False), (256, None, False)]
)
def test_rows_that_are_too_many_for_factors_are_normed_before(
    num_rows: int, eps: float | None, norms: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches, x = NotedLaunches(), torch.zeros(num_rows, 64, dtype=torch.bfloat16)
    normed, cuts = torch.ones_like(x), list[bool]()

    def cut(*sizes: Any, gated: bool, normed: bool) -> Tiling:
        cuts.append(normed)
        return cut_tiles(*sizes, gated=gated, normed=normed)

    monkeypatch.setattr(many_rows, "cut_tiles", cut)
    monkeypatch.setattr(many_rows, "MAX_ROWS", 256)
    monkeypatch.setattr(many_rows, "_linear_many_rows_kernel", launches)
    monkeypatch.setattr(many_rows, "_describe", lambda tensor, box: tensor)
    monkeypatch.setattr(many_rows, "num_multiprocessors", lambda device: 132)
    monkeypatch.setattr(many_rows, "overlaps_launches", lambda device: False)
    monkeypatch.setattr(many_rows, "rms_norm_rows", lambda x, weight, eps: normed)
    many_rows.linear_many_rows(x, torch.zeros(256, 64, dtype=torch.bfloat16), eps=eps)
    ((multiplied, within),) = launches.made
    assert [within] == cuts == [norms]
    assert multiplied is (normed if eps and not norms else x)


class HostLanguage:
    """What a function of the kernel asks of its language, for numbers of the host."""

    minimum = staticmethod(min)

    @staticmethod
    def cdiv(number: int, divisor: int) -> int:
        return -(-number // divisor)

    @staticmethod
    def where(condition: bool, one: int, other: int) -> int:
        return one if condition else other

    @staticmethod
    def num_programs(axis: int) -> int:
        return NUM_PROGRAMS


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("num_outputs", [128, 3072, 6144, 14336])
def test_the_tile_that_is_taken_first_of_its_rows_is_whole_and_knows_it(
    num_outputs: int, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many_rows_tile, "gl", HostLanguage)
    for num_rows in (1, 192, 193, 1024, 2048, 4099, 4352, 5000, 8192):
        for config in (many_rows_config(num_rows, gated=gated), WIDE, replace(TALL_GATED, band=3)):
            tiling = cut_tiles(config, num_rows, num_outputs, 4096, NUM_PROGRAMS, gated=gated, normed=True)
            taken, first = set[int](), dict[int, int]()
            for tile in range(num_tiles(tiling)):
                row, _strip, _backwards, is_first = many_rows_tile._place_of_tile.fn(
                    tile, num_rows, tiling.num_strips, 64 * config.groups, config.band, config.to_and_fro
                )
                assert is_first == (row not in taken)
                taken.add(row)
                if is_first:
                    first[row] = tile
            assert sorted(first) == list(range(0, num_rows, 64 * config.groups))
            assert max(first.values()) < tiling.num_whole


def num_tiles(tiling: Tiling) -> int:
    return tiling.num_whole + (tiling.num_items - tiling.num_whole) // tiling.num_pieces


@pytest.mark.parametrize(
    ("shape", "pieces", "pieces_normed"), [((4352, 6144, 2048), 2, 1), ((8192, 14336, 4096), 2, 2)]
)
def test_tiles_are_in_pieces_where_a_norm_leaves_them(
    shape: tuple[int, int, int], pieces: int, pieces_normed: int
) -> None:
    assert cut_tiles(TALL_GATED, *shape, NUM_PROGRAMS, gated=True).num_pieces == pieces
    assert cut_tiles(TALL_GATED, *shape, NUM_PROGRAMS, gated=True, normed=True).num_pieces == pieces_normed
