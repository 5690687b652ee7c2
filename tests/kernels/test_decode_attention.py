"""Attention of decode steps over pages: the kernels against their torch reference."""

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.attention import decode
from quire_kernels.attention.decode import takes_pages
from quire_kernels.attention.tuning import DecodeConfig, decode_config

from tests.kernels.attention_case import (
    BOUNDARIES,
    HAS_PAGE_COPIES,
    HEADS,
    check_attention,
    paged_case,
)
from tests.kernels.case import DTYPES, ON_GPU

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("num_splits", [1, 4])
def test_decode_attention_equals_reference(
    num_heads: int, num_kv_heads: int, window: int | None, num_splits: int, dtype: torch.dtype
) -> None:
    head_dim = 128 if ON_GPU and num_heads > 6 else 24
    case = paged_case(
        BOUNDARIES + ([(1, 1000), (1, 1025), (1, 9000)] if ON_GPU else []),
        num_heads,
        num_kv_heads,
        head_dim,
        dtype,
    )
    config = DecodeConfig(tile=16, num_splits=num_splits, min_split=16, num_warps=4, num_stages=2)
    check_attention(case, window, decode=config, padding=3)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="pages are copied on Hopper alone")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "tile", "num_stages", "num_splits"),
    [(8, 8, 16, 3, 1), (16, 8, 32, 2, 1), (32, 8, 32, 3, 2), (14, 2, 16, 4, 8), (8, 1, 32, 3, 64)],
)
def test_decode_attention_by_page_equals_reference(
    num_heads: int,
    num_kv_heads: int,
    tile: int,
    num_stages: int,
    num_splits: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    lengths = [*BOUNDARIES, (3, 40), (1, 1000), (1, 1025), (2, 17), (1, 9000)]
    case = paged_case(lengths, num_heads, num_kv_heads, 128, dtype)
    assert takes_pages(9, 2, *case[:3])
    config = DecodeConfig(
        tile=tile, num_splits=num_splits, min_split=32, num_warps=1, num_stages=num_stages, by_page=True
    )
    check_attention(case, window, decode=config, padding=3)


def test_only_usual_tensors_are_taken_by_page() -> None:
    def takes(
        dtype: torch.dtype = torch.bfloat16,
        width: int = 128,
        block_size: int = 16,
        major: int = 9,
        num_rows: int = 2,
    ) -> bool:
        caches = torch.zeros(2, 3, block_size, 2, width, dtype=dtype)
        return takes_pages(major, num_rows, torch.zeros(1, 4, width, dtype=torch.bfloat16), *caches)

    assert takes()
    assert takes(block_size=32)
    assert not takes(num_rows=1)
    assert not takes(major=8)
    assert not takes(major=10)
    assert not takes(dtype=torch.float8_e4m3fn)
    assert not takes(dtype=torch.float16)  # which is not that of the queries
    assert not takes(width=64)
    assert not takes(block_size=8)
    heads_apart = torch.zeros(3, 2, 16, 128, dtype=torch.bfloat16).transpose(1, 2)
    assert not takes_pages(9, 2, torch.zeros(1, 4, 128, dtype=torch.bfloat16), heads_apart, heads_apart)
    many_heads = torch.zeros(1, 34, 128, dtype=torch.bfloat16)
    assert not takes_pages(9, 2, many_heads, *torch.zeros(2, 3, 16, 2, 128, dtype=torch.bfloat16))


def test_a_triton_without_the_language_of_the_page_kernel_takes_nothing_by_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "decode_pages", None)
    caches = torch.zeros(2, 3, 16, 2, 128, dtype=torch.bfloat16)
    assert not takes_pages(9, 2, torch.zeros(1, 4, 128, dtype=torch.bfloat16), *caches)


@pytest.mark.parametrize("num_rows", [1, 2, 4, 16, 32, 64, 140, 256, 1000])
def test_pages_are_split_into_no_more_parts_than_there_are_keys(num_rows: int) -> None:
    config = decode_config(9, num_rows, 8, 1024, by_page=True)
    assert config.by_page
    assert config.tile in (16, 32)
    assert config.min_split % config.tile == 0
    assert (config.num_splits - 1) * config.min_split < 1024


@pytest.mark.parametrize(
    ("num_programs", "num_splits", "tile", "num_stages"),
    [
        (1, 64, 32, 3),
        (16, 64, 32, 3),
        (17, 16, 32, 3),
        (32, 16, 32, 3),
        (33, 8, 32, 3),
        (128, 8, 32, 3),
        (129, 4, 32, 3),
        (256, 4, 32, 3),
        (257, 2, 32, 3),
        (767, 2, 32, 3),
        (768, 1, 32, 3),
        (2048, 1, 32, 3),
        (2049, 1, 32, 2),
        (4095, 1, 32, 2),
        (4096, 1, 16, 3),
    ],
)
def test_pages_are_split_and_tiled_as_was_fastest(
    num_programs: int, num_splits: int, tile: int, num_stages: int
) -> None:
    config = decode_config(9, num_programs, 1, 32768, by_page=True)
    assert (config.num_splits, config.tile, config.num_stages) == (num_splits, tile, num_stages)
    assert (config.num_warps, config.min_split) == (1, 128)
