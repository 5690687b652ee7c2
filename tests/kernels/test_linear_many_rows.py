"""The product of many rows on Hopper and how it is cut into tiles, against torch references."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels import dispatch
from quire_kernels.linear import reference
from quire_kernels.linear.tiling import (
    TALL,
    TALL_GATED,
    WIDE,
    ManyRowsConfig,
    cut_tiles,
    many_rows_config,
    suits_many_rows,
)

from tests.kernels.many_rows_case import assert_close, on_hopper, random

many_rows = pytest.importorskip("quire_kernels.linear.many_rows", exc_type=ImportError)

pytestmark = pytest.mark.usefixtures("seeded")

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
    eager = [dispatch.gated_linear(x, weight, eps=1e-5), many_rows.linear_many_rows(x, weight)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = [dispatch.gated_linear(x, weight, eps=1e-5), many_rows.linear_many_rows(x, weight)]
    for _ in range(3):
        graph.replay()
        assert all(map(torch.equal, eager, captured))


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
