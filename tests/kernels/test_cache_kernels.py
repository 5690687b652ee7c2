"""What writes to the KV cache, rotary embedding included: each Triton kernel against its torch reference."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.blocks.copy import copy_blocks_spans
from quire_kernels.blocks.reference import copy_blocks
from quire_kernels.rotary import heads
from quire_kernels.rotary.embedding import rotary_embedding_heads
from quire_kernels.rotary.heads import rotary_embedding_cache
from quire_kernels.rotary.reference import rotary_embedding, rotary_embedding_and_cache

from tests.kernels.case import BLOCK_SIZE, DEVICE, DTYPES, HAS_FP8, ON_GPU, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 32), (128, 128)])
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("many_tokens", [6, 5])
def test_rotary_embedding_and_cache_equals_reference(
    head_dim: int,
    rotary_dim: int,
    with_norm: bool,
    many_tokens: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heads, "_MANY_TOKENS", many_tokens)  # those of this case are few, or many
    num_tokens, num_heads, num_kv_heads = 5, 12, 3
    fused = random(num_tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    q, k, v = fused.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cos_sin = random(40, rotary_dim)
    positions = torch.tensor([0, 39, 7, 8, 16], device=DEVICE)
    slots = torch.tensor([16, 31, 32, 5 * 16 + 7, 47], device=DEVICE)
    weights = (random(head_dim, dtype=dtype), random(head_dim, dtype=dtype)) if with_norm else (None, None)
    caches = torch.full(
        (2, 2, 6, BLOCK_SIZE, num_kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE
    )
    actual = rotary_embedding_cache(q, k, v, cos_sin, positions, *caches[0], slots, *weights)
    expected = rotary_embedding_and_cache(q, k, v, cos_sin, positions, *caches[1], slots, *weights)
    assert_close(actual, expected)
    assert torch.equal(caches[0].isnan(), caches[1].isnan())
    assert_close(caches[0].nan_to_num(), caches[1].nan_to_num())
    for rotated, truth in zip(
        rotary_embedding_heads(q, k, cos_sin, positions),
        rotary_embedding(q, k, cos_sin, positions),
        strict=True,
    ):
        assert_close(rotated, truth)


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(0, 3), (6, 0), (0, 0)])
@pytest.mark.parametrize("many_tokens", [6, 5])
def test_queries_and_keys_are_rotated_without_the_other(
    num_heads: int, num_kv_heads: int, many_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_MANY_TOKENS", many_tokens)
    num_tokens, head_dim = 5, 64
    q, k = random(num_tokens, num_heads, head_dim), random(num_tokens, num_kv_heads, head_dim)
    v, cos_sin = random(num_tokens, num_kv_heads, head_dim), random(40, head_dim)
    positions = torch.tensor([0, 39, 7, 8, 16], device=DEVICE)
    slots = torch.tensor([16, 31, 32, 5 * 16 + 7, 47], device=DEVICE)
    caches = torch.full((2, 2, 6, BLOCK_SIZE, 3, head_dim), float("nan"), device=DEVICE)[
        ..., :num_kv_heads, :
    ]
    weights = random(head_dim), random(head_dim)
    actual = rotary_embedding_cache(q, k, v, cos_sin, positions, *caches[0], slots, *weights)
    expected = rotary_embedding_and_cache(q, k, v, cos_sin, positions, *caches[1], slots, *weights)
    assert torch.equal(caches[0].isnan(), caches[1].isnan())
    for mine, theirs in ((actual, expected), (caches[0].nan_to_num(), caches[1].nan_to_num())):
        assert mine.shape == theirs.shape
        if mine.numel():
            assert_close(mine, theirs)


class NotedLaunch:
    """Stands in for a kernel and runs nothing."""

    def __init__(self) -> None:
        self.grid: tuple[int, ...] = ()
        self.cut: tuple[int, ...] = ()

    def __getitem__(self, grid: tuple[int, ...]) -> "NotedLaunch":
        self.grid = grid
        return self

    def __call__(self, *_: Any, **options: Any) -> None:
        self.cut = tuple(options[name] for name in ("TOKENS", "HEADS", "TILES"))


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "num_kv_heads", "grid", "cut"),
    [
        (1023, 32, 8, (1023, 4 + 2), (1, 8, 1)),
        (1024, 32, 8, (128, 8 + 2 * 2), (8, 1, 4)),
        (1025, 28, 4, (129, 7 + 2), (8, 1, 4)),
        (1024, 6, 2, (128, 3 + 2), (8, 1, 2)),
        (1024, 0, 8, (128, 2 * 2), (8, 1, 4)),
        (1023, 16, 0, (1023, 2), (1, 8, 1)),
    ],
)
def test_programs_of_many_tokens_take_one_head_of_each(
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    grid: tuple[int, int],
    cut: tuple[int, int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = NotedLaunch()
    monkeypatch.setattr(heads, "_rotary_embedding_cache_kernel", kernel)
    q, k = (random(num_tokens, number, 64) for number in (num_heads, num_kv_heads))
    places = torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE)
    k_cache, v_cache = random(2, 1, BLOCK_SIZE, num_kv_heads, 64)
    rotary_embedding_cache(q, k, k, random(1, 64), places, k_cache, v_cache, places)
    assert (kernel.grid, kernel.cut) == (grid, cut)


@pytest.mark.gpu
@pytest.mark.parametrize("num_tokens", [1023, 1024, 1029, 8192])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "with_norm"), [(32, 8, False), (16, 8, True), (28, 4, False)]
)
def test_steps_of_a_prompt_are_rotated_and_cached(
    num_tokens: int, num_heads: int, num_kv_heads: int, with_norm: bool
) -> None:
    fused = random(num_tokens, num_heads + 2 * num_kv_heads, 128, dtype=torch.bfloat16)
    q, k, v = fused.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    cos_sin = random(num_tokens, 128)
    positions, slots = (torch.randperm(num_tokens, device=DEVICE) for _ in range(2))
    weights = (random(128, dtype=q.dtype), random(128, dtype=q.dtype)) if with_norm else (None, None)
    shape = (2, 2, num_tokens // BLOCK_SIZE + 2, BLOCK_SIZE, num_kv_heads, 128)
    caches = torch.full(shape, float("nan"), dtype=q.dtype, device=DEVICE)
    actual = rotary_embedding_cache(q, k, v, cos_sin, positions, *caches[0], slots, *weights)
    expected = rotary_embedding_and_cache(q, k, v, cos_sin, positions, *caches[1], slots, *weights)
    assert_close(actual, expected)
    assert torch.equal(caches[0].isnan(), caches[1].isnan())
    assert_close(caches[0].nan_to_num(), caches[1].nan_to_num())


@pytest.mark.skipif(ON_GPU and not HAS_FP8, reason="the GPU has no 8-bit floats")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("many_tokens", [10, 9])
def test_cache_of_8_bits_is_written_as_by_the_reference(
    many_tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "_MANY_TOKENS", many_tokens)
    q, k, v = (10 * random(9, num_heads, 48, dtype=dtype) for num_heads in (4, 2, 2))
    cos_sin, positions = random(9, 48), torch.arange(9, device=DEVICE)
    if not ON_GPU:
        # The interpreter rounds to 8 bits wrongly where a carry leaves the mantissa: give it nothing to round.
        k, v = (each.to(torch.float8_e4m3fn).to(dtype) for each in (k, v))
        cos_sin[:, :24], cos_sin[:, 24:] = 1.0, 0.0
    k[0, 0, :3] = torch.tensor([1e4, -1e4, 0.0], device=DEVICE)  # beyond the largest value of the type
    caches = torch.zeros((2, 2, 2, BLOCK_SIZE, 2, 48), device=DEVICE).to(torch.float8_e4m3fn)
    options = {"k_scale": 0.25, "v_scale": 0.125}
    rotary_embedding_cache(q, k, v, cos_sin, positions, *caches[0], positions + 3, **options)
    rotary_embedding_and_cache(q, k, v, cos_sin, positions, *caches[1], positions + 3, **options)
    actual, expected = caches[0].float(), caches[1].float()
    assert float(expected.abs().max()) == 448.0
    # The last bit may differ where the rotation itself is rounded another way.
    assert float((actual != expected).double().mean()) < 2e-3
    assert bool(((actual - expected).abs() <= expected.abs() / 8 + 2**-9).all())


def test_copies_of_blocks_are_applied_in_order() -> None:
    caches = random(2, 2, 8, BLOCK_SIZE, 3, 20)
    expected = caches.clone()
    pairs = torch.tensor([[1, 2], [2, 3], [5, 1], [0, 0]], device=DEVICE)
    copy_blocks_spans(caches, pairs)
    copy_blocks(expected, pairs)
    assert torch.equal(caches, expected)
    copy_blocks_spans([caches[0, 0]], torch.tensor([[7, 6]], device=DEVICE))
    assert torch.equal(caches[0, 0, 6], caches[0, 0, 7])
