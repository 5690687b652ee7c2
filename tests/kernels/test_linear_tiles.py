"""Products of some hundred rows by tiles and what they fold in, against torch: on a Hopper GPU; their settings anywhere."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import between_attentions
from quire_kernels.linear import reference
from quire_kernels.linear.tuning import TilesConfig, suits_tiles, tiles_config

from tests.kernels.case import DEVICE, ON_HOPPER, assert_product_close, random

pytestmark = pytest.mark.usefixtures("seeded")

EPS = 1e-5
TILED = [(6144, 1024), (1024, 3072), (384, 128)]
TILES_CONFIGS = [
    TilesConfig(outs=64, rows=16, unroll=False),
    TilesConfig(outs=64, rows=32, unroll=True),
    TilesConfig(outs=64, rows=80, unroll=False),
    TilesConfig(outs=64, rows=128, unroll=True, width=64, num_stages=4),
    TilesConfig(outs=64, rows=176, unroll=False),
    TilesConfig(outs=128, rows=144, unroll=False),
    None,
]


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [65, 96, 144, 160, 176, 207, 256])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), TILED)
def test_product_of_some_hundred_rows_equals_reference(
    num_outputs: int, num_inputs: int, num_rows: int, dtype: torch.dtype
) -> None:
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    wide = random(num_rows, num_inputs + 64, dtype=dtype)
    x, weight = wide[:, 64:], random(num_outputs, num_inputs, dtype=dtype)
    residual = random(num_rows, num_outputs, dtype=dtype)
    expected = reference.linear(x, weight)
    expected_sum = reference.linear_add(residual, x, weight)
    small = weight / 16  # of gates so large as those of random weights nothing is left to see
    expected_gated = reference.gated_linear(x, small)
    for config in TILES_CONFIGS:
        # Rows of a neighbour, which must stay as they are.
        held = torch.full((num_rows + 8, num_outputs), float("nan"), device=DEVICE, dtype=dtype)
        out = held[:num_rows]
        assert linear_tiles_hopper(x, weight, out=out, config=config) is out
        assert_product_close(out, expected)
        assert held[num_rows:].isnan().all()
        added = linear_tiles_hopper(x, weight, out=residual.clone(), add=True, config=config)
        assert_product_close(added, expected_sum)
        gated = linear_tiles_hopper(x, small, gated=True, config=config)
        assert gated.shape == (num_rows, num_outputs // 2)
        assert_product_close(gated, expected_gated)
        assert torch.equal(gated, linear_tiles_hopper(x, small, gated=True, config=config))


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
@pytest.mark.parametrize("num_rows", [5, 80, 176])
def test_a_bias_is_added_to_products_of_some_hundred_rows(num_rows: int) -> None:
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    bf16 = torch.bfloat16
    x, weight = random(num_rows, 512, dtype=bf16), random(768, 512, dtype=bf16) / 16
    bias, residual = random(768, dtype=bf16), random(num_rows, 768, dtype=bf16)
    squares = 512 * torch.exp(
        4 * torch.randn(num_rows, 1, device=DEVICE)
    )  # a norm's factor comes before the bias
    for config in (TILES_CONFIGS[0], TILES_CONFIGS[4], TILES_CONFIGS[5]):
        out = torch.full_like(residual, float("nan"))
        linear_tiles_hopper(x, weight, bias, out=out, config=config)
        assert_product_close(out, reference.linear(x, weight, bias))
        added = linear_tiles_hopper(x, weight, bias, out=residual.clone(), add=True, config=config)
        assert_product_close(added, reference.linear_add(residual, x, weight, bias))
        gated = linear_tiles_hopper(x, weight, bias, gated=True, config=config)
        assert_product_close(gated, reference.gated_linear(x, weight, bias))
        normed = linear_tiles_hopper(x, weight, bias, squares=squares, eps=EPS, config=config)
        assert_product_close(normed, reference.normed_linear(x, squares, weight, bias, eps=EPS))


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
def test_products_in_a_chain_wait_for_one_another() -> None:
    """What a product copies early must be its weights alone, also where a graph launches the next one ahead of time."""
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    weights = [random(1024, 1024, dtype=torch.bfloat16) / 32 for _ in range(24)]
    x, out = (
        random(144, 1024, dtype=torch.bfloat16),
        torch.empty(144, 1024, device=DEVICE, dtype=torch.bfloat16),
    )

    def chain() -> None:
        values = x
        for weight in weights:
            values = linear_tiles_hopper(values, weight)
        out.copy_(values)

    chain()
    eager, graph = out.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        chain()
    for _ in range(20):
        x.normal_()
        out.fill_(float("nan"))
        graph.replay()
        replayed = out.clone()
        chain()
        assert torch.equal(replayed, out)
    assert not torch.equal(eager, out)


NORM_CONFIGS = [
    TilesConfig(outs=64, rows=16, unroll=False),
    TilesConfig(outs=64, rows=80, unroll=False),
    TilesConfig(outs=128, rows=144, unroll=False, width=64),
    None,
]


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
@pytest.mark.parametrize("num_rows", [65, 96, 144, 160, 207, 256])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(1024, 2048), (1024, 3072), (384, 128)])
def test_sum_of_some_hundred_rows_leaves_what_its_norm_is_made_of(
    num_outputs: int, num_inputs: int, num_rows: int
) -> None:
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    bf16 = torch.bfloat16
    x, weight = random(num_rows, num_inputs, dtype=bf16), random(num_outputs, num_inputs, dtype=bf16) / 16
    wide = random(num_rows + 8, num_outputs, dtype=bf16)
    for config in NORM_CONFIGS:
        plain = linear_tiles_hopper(x, weight, out=wide[:num_rows].clone(), add=True, config=config)
        poison = torch.full((256, 16), float("nan"), device=DEVICE)
        del poison
        held = wide.clone()
        residual = held[:num_rows]
        squares = linear_tiles_hopper(x, weight, out=residual, add=True, leave_squares=True, config=config)
        num_tiles = squares.shape[1]
        assert num_tiles == num_outputs // (config.outs if config else 64)
        assert_product_close(residual, reference.linear_add(wide[:num_rows], x, weight))
        assert torch.equal(residual, plain)
        assert torch.equal(held[num_rows:], wide[num_rows:])
        assert_product_close(squares, residual.float().square().unflatten(1, (num_tiles, -1)).sum(dim=2))
        again = linear_tiles_hopper(
            x, weight, out=wide[:num_rows].clone(), add=True, leave_squares=True, config=config
        )
        assert torch.equal(squares, again)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
@pytest.mark.parametrize("num_rows", [65, 144, 160, 207, 256])
@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "num_tiles"),
    [(6144, 1024, 16), (384, 128, 1), (384, 128, 6), (384, 128, 64)],
)
def test_product_of_some_hundred_rows_makes_the_norm_of_its_rows(
    num_outputs: int, num_inputs: int, num_rows: int, num_tiles: int
) -> None:
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    bf16 = torch.bfloat16
    x = random(num_rows, num_inputs, dtype=bf16)
    weight = random(num_outputs, num_inputs, dtype=bf16) / num_inputs**0.5
    # Of any size from one row to the next, so that a factor of another row is seen.
    squares = num_inputs / num_tiles * torch.exp(4 * torch.randn(num_rows, 1, device=DEVICE))
    squares = squares * torch.rand(num_rows, num_tiles, device=DEVICE)
    expected = reference.normed_linear(x, squares, weight, eps=EPS)
    expected_gated = reference.normed_gated_linear(x, squares, weight, eps=EPS)
    for config in NORM_CONFIGS:
        product = linear_tiles_hopper(x, weight, squares=squares, eps=EPS, config=config)
        gated = linear_tiles_hopper(x, weight, gated=True, squares=squares, eps=EPS, config=config)
        for actual, wanted in ((product, expected), (gated, expected_gated)):
            assert_product_close(actual, wanted)
            each = (actual.double() - wanted.double()).norm(dim=1) / wanted.double().norm(dim=1)
            assert each.max() < 2e-2
        assert torch.equal(
            gated, linear_tiles_hopper(x, weight, gated=True, squares=squares, eps=EPS, config=config)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernel is for Hopper")
def test_what_is_not_a_number_stays_in_its_row_through_a_norm() -> None:
    from quire_kernels.linear.tiles_hopper import linear_tiles_hopper

    bf16 = torch.bfloat16
    x, weight, residual = (random(size, 256, dtype=bf16) for size in (144, 256, 144))
    x[3, 7], residual[141, 255] = float("nan"), float("inf")
    squares = linear_tiles_hopper(x, weight, out=residual, add=True, leave_squares=True)
    for gated in (False, True):
        product = linear_tiles_hopper(residual, weight, gated=gated, squares=squares, eps=EPS)
        bad = product.isnan().any(dim=1).nonzero().flatten()
        assert bad.tolist() == [3, 141]


@pytest.mark.gpu
@pytest.mark.skipif(not ON_HOPPER, reason="the kernels are for Hopper")
@pytest.mark.parametrize("num_rows", [2, 16, 24, 50, 72, 144, 200, 256])
def test_layers_whose_norms_are_factors_are_repeated_bit_for_bit(num_rows: int) -> None:
    """A graph launches a product before the one ahead of it has ended: what it reads early must be settled."""
    bf16 = torch.bfloat16
    sizes = {"o": (1024, 2048), "gate_up": (6144, 1024), "down": (1024, 3072), "qkv": (4096, 1024)}
    layers: list[dict[str, Any]] = [
        {name: random(*size, dtype=bf16) / 40 for name, size in sizes.items()} for _ in range(4)
    ]
    biases: dict[str, Any] = dict.fromkeys(("o_bias", "gate_up_bias", "down_bias", "qkv_bias"))
    begin, attended = random(num_rows, 1024, dtype=bf16), random(num_rows, 2048, dtype=bf16)
    residual = torch.empty_like(begin)

    def take_steps() -> list[Tensor]:
        residual.copy_(begin)
        made, inputs = [], attended
        for layer in layers * 4:
            made.append(between_attentions(residual, inputs, **layer, **biases, eps=EPS))
            inputs = made[-1][:, :2048]
        return [*made, residual]

    eager = [tensor.clone() for tensor in take_steps()]
    expected = reference.between_attentions(begin, attended, **layers[0], qkv_bias=None, eps=EPS)[1]
    assert_product_close(eager[0], expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = take_steps()
    for _ in range(30):
        for out in outputs:
            out.fill_(float("nan"))
        graph.replay()
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(outputs, eager, strict=True))


@pytest.mark.parametrize(
    ("num_rows", "boxes"),
    [(16, (16, 0)), (80, (64, 16)), (96, (64, 32)), (112, (128, 0)), (144, (128, 16)), (176, (128, 64))],
)
def test_rows_of_a_tile_are_copied_in_boxes_of_powers_of_two(num_rows: int, boxes: tuple[int, int]) -> None:
    tiles_hopper = pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    assert tiles_hopper.boxes(num_rows) == boxes


@pytest.mark.parametrize(
    ("num_rows", "num_outputs", "num_inputs", "gated", "suited"),
    [
        (65, 4096, 2048, False, True),
        (256, 4096, 2048, False, True),
        (257, 4096, 2048, False, False),
        (256, 4224, 2048, False, False),
        (256, 4096, 1024, True, True),
        (256, 4160, 1024, True, False),
        (256, 4096, 2048, True, False),
    ],
)
def test_only_products_of_some_hundred_rows_that_were_faster_are_taken(
    num_rows: int, num_outputs: int, num_inputs: int, gated: bool, suited: bool
) -> None:
    assert suits_tiles(num_rows, num_outputs, num_inputs, gated=gated) == suited


@pytest.mark.parametrize(
    ("num_rows", "gated", "wide"),
    [
        # rows of a tile: of a gated product and of one with 4,096 outputs or more
        (65, 80, 80),
        (96, 96, 96),
        (97, 112, 64),
        (144, 144, 80),
        (145, 160, 80),
        (192, 192, 96),
        (193, 112, 112),
        (224, 112, 112),
        (225, 128, 128),
        (256, 128, 128),
    ],
)
def test_tiles_of_some_hundred_rows_are_cut_where_that_was_faster(
    num_rows: int, gated: int, wide: int
) -> None:
    of_gates = TilesConfig(outs=64, rows=gated, unroll=False)
    if num_rows > 192:
        of_gates = TilesConfig(outs=128, rows=gated, unroll=True, width=64)
    elif num_rows > 144:
        of_gates = TilesConfig(outs=64, rows=gated, unroll=False, width=64)
    assert tiles_config(num_rows, 3072, 1024, gated=True) == of_gates
    beside_attention = TilesConfig(outs=64, rows=wide, unroll=False, num_stages=4)
    assert tiles_config(num_rows, 4096, 1024, gated=False) == beside_attention
    assert tiles_config(num_rows, 4095, 1024, gated=False) == TilesConfig(outs=64, rows=32, unroll=True)


def test_heads_of_few_rows_leave_room_for_attention_where_that_was_faster() -> None:
    for num_rows, num_stages in ((17, None), (32, None), (33, 5), (64, 5)):
        config = TilesConfig(outs=64, rows=32, unroll=True, num_stages=num_stages)
        assert tiles_config(num_rows, 4096, 1024, gated=False) == config
        assert tiles_config(num_rows, 4095, 1024, gated=False).num_stages is None


@pytest.mark.parametrize("num_rows", [*range(2, 257, 7), 16, 32, 48, 64, 176, 192])
@pytest.mark.parametrize("gated", [False, True])
def test_tuned_tiles_hold_every_row_and_fit(num_rows: int, gated: bool) -> None:
    for num_outputs, num_inputs in ((4096, 1024), (1024, 2048), (1024, 3072), (3072, 1024)):
        assert suits_tiles(num_rows, num_outputs, num_inputs, gated=gated)
        assert_tiles_fit(num_rows, num_outputs, num_inputs, gated=gated)
    assert not suits_tiles(num_rows, 14336, 3456, gated=gated)
    assert not suits_tiles(257, 4096, 1024, gated=gated)


def assert_tiles_fit(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> None:
    tiles_hopper = pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    config = tiles_config(num_rows, num_outputs, num_inputs, gated=gated)
    assert config.outs in (64, 128)
    assert config.rows % 16 == 0
    rows = sum(tiles_hopper.boxes(config.rows))  # as they are copied, which may be more than asked for
    assert rows >= config.rows
    assert (config.outs // 64) * rows <= 256, "what a thread holds of a product"
    # A third stage is what hides the copies of a step.
    ring = (config.num_stages or 3) * 2 * config.width * (config.outs + rows)
    results = (2 * config.outs // 2 if gated else 4 * config.outs) * rows  # sums are held in float32
    assert ring + results <= 225 << 10
    assert config.num_stages is None or config.num_stages >= 3
    assert num_inputs % config.width == 0


def test_unfit_shapes_of_some_hundred_rows_are_refused() -> None:
    tiles_hopper = pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    x, weight = random(80, 128, dtype=torch.bfloat16), random(128, 128, dtype=torch.bfloat16)
    assert tiles_hopper.can_multiply(x, weight)
    assert not tiles_hopper.can_multiply(x.float(), weight.float())
    assert not tiles_hopper.can_multiply(x, weight[:96])
    assert not tiles_hopper.can_multiply(x[:, :64], weight[:, :64])
    assert not tiles_hopper.can_multiply(random(80, 132, dtype=torch.bfloat16)[:, :128], weight)
    with pytest.raises(ValueError, match=r"it must be \(rows, 128\)"):
        tiles_hopper.linear_tiles_hopper(x[:, :64], weight)
    for bias in (
        random(64, dtype=torch.bfloat16),
        random(256, dtype=torch.bfloat16),
        random(256, dtype=torch.bfloat16)[::2],
    ):
        with pytest.raises(ValueError, match=r"must be \(128,\), contiguous"):
            tiles_hopper.linear_tiles_hopper(x, weight, bias)
    with pytest.raises(ValueError, match="whole tiles"):
        tiles_hopper.linear_tiles_hopper(x, weight[:96])
    large = TilesConfig(outs=128, rows=256, unroll=False)
    deep = random(128, 512, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="of 4 steps at a time; it must be 2 at least"):
        tiles_hopper.linear_tiles_hopper(
            deep, deep, out=random(128, 128, dtype=torch.bfloat16), add=True, config=large
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gated": True, "add": True}, "gated product cannot be added"),
        ({"add": False}, "only a sum"),
        ({"squares": torch.zeros(80, 2)}, "only a sum"),
        ({"leave_squares": False, "squares": torch.zeros(80, 2)}, "cannot be added"),
        ({"add": False, "leave_squares": False, "squares": torch.zeros(79, 2)}, r"must be \(80, tiles\)"),
        ({"add": False, "leave_squares": False, "squares": torch.zeros(80, 4)[:, :2]}, "contiguous"),
        ({"add": False, "leave_squares": False, "squares": torch.zeros(80, 2).bfloat16()}, "float32"),
    ],
)
def test_norms_that_cannot_be_made_are_refused(changes: dict[str, Any], message: str) -> None:
    tiles_hopper = pytest.importorskip("quire_kernels.linear.tiles_hopper", exc_type=ImportError)
    x, weight, out = (torch.zeros(rows, 128, dtype=torch.bfloat16) for rows in (80, 128, 80))
    options = {"out": out, "add": True, "leave_squares": True}
    with pytest.raises(ValueError, match=message):
        tiles_hopper.linear_tiles_hopper(x, weight, **{**options, **changes})
