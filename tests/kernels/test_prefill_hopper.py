"""Attention of prompts by the kernel for Hopper against its torch reference."""

from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.tuning import prefill_hopper_config
from quire_kernels.rotary.heads import rotary_embedding_cache

from tests.kernels.attention_case import HAS_PAGE_COPIES, LONG, MIXED, check_attention, paged_case
from tests.kernels.case import BLOCK_SIZE, DEVICE, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim", "window", "dtype"), [
    (32, 8, 128, None, torch.bfloat16), (32, 8, 128, 200, torch.float16), (6, 2, 128, 20, torch.bfloat16),
    (8, 1, 128, None, torch.bfloat16), (14, 2, 64, None, torch.bfloat16), (4, 4, 64, 70, torch.bfloat16),
])  # fmt: skip
def test_hopper_prefill_equals_reference(
    num_heads: int, num_kv_heads: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    lengths = [*MIXED, *LONG, (700, 1500), (40, 4000), (300, 300), (127, 255)]
    case = paged_case(lengths, num_heads, num_kv_heads, head_dim, dtype)
    tuned = prefill_hopper_config(
        torch.cuda.get_device_properties(DEVICE).multi_processor_count, num_kv_heads, len(lengths)
    )
    for num_programs, shortest in ((1, 1), (100, 1), (100, 2)):
        config = replace(tuned, num_programs=num_programs, shortest=shortest, min_split=128)
        check_attention(case, window, prefill=config, padding=5, settled=head_dim == 128)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize("group", range(1, 9))
def test_hopper_prefill_in_splits_equals_reference(group: int) -> None:
    """Few tiles over many keys, around the ends of pages, tiles and splits; parts are merged by the first split."""
    for query_len, seq_len in ((256, 4096), (64, 4097), (33, 1023), (31, 1025), (17, 2049), (2, 3000)):
        case = paged_case([(query_len, seq_len)], 8 * group, 8, 128, torch.bfloat16)
        for window in (None, 600) if group % 4 == 3 else (None,):
            check_attention(case, window, tuned_for_cache=True, padding=group)
    if group % 4 == 2:
        lengths = [(40, 4000), (5, 70), (1, 900), (130, 2500), (64, 64)]
        case = paged_case(lengths, 2 * group, 2, 64, torch.float16)
        check_attention(case, None, tuned_for_cache=True)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize(("num_heads", "head_dim", "dtype"), [
    (32, 128, torch.bfloat16), (24, 128, torch.bfloat16), (16, 64, torch.bfloat16), (32, 128, torch.float16),
])  # fmt: skip
def test_scores_of_any_size_equal_reference(num_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """Most rows find scores that are hundreds of powers of two above those of the first keys that they saw."""
    case = paged_case([(200, 3000), (129, 129), (40, 2001), (3, 70), (1, 500)], num_heads, 8, head_dim, dtype)
    case[0].mul_(40)
    for window in (None, 300):
        check_attention(case, window, tuned_for_cache=True, padding=3)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize("exponent", [-300, -40, 12, 63, 65, 100, 126, 129, 500])
def test_keys_that_outweigh_all_before_them_equal_reference(exponent: int) -> None:
    """One key is 2^``exponent`` times as heavy as the others, in the first, a middle or the last tile, for one row or for all.

    Values are large: times a weight that the kernel should not have kept they are infinite.
    """
    for place in (5, 700, 1290):
        for rows in (slice(None), slice(37, 38)):
            case = paged_case([(100, 1300), (2, 64)], 32, 8, 128, torch.bfloat16)
            q, k_cache, v_cache, tables, *_ = case
            v_cache.mul_(2.0**60)
            q[:100].mul_(1e-3)
            q[rows, :, 0] = 16
            k_cache[:, :, :, 0] = 0
            heavy = exponent / (16 * 128**-0.5 * 1.4427)
            k_cache[tables[0, place // BLOCK_SIZE], place % BLOCK_SIZE, :, 0] = heavy
            check_attention(case, None, tuned_for_cache=True)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize(("block_size", "head_dim"), [(32, 128), (64, 128), (128, 128), (64, 64), (256, 64)])
@pytest.mark.parametrize("largest", [1, 40])
def test_hopper_prefill_over_larger_blocks_equals_reference(
    block_size: int, head_dim: int, largest: int
) -> None:
    """Pages fill a tile, or a tile is part of one; with large scores most items are done again."""
    lengths = [(200, 3000), (129, 129), (40, 2001), (1, 500), (64, 64), (65, 129)]
    case = paged_case(lengths, 32, 8, head_dim, torch.bfloat16, block_size)
    q, k_cache, _, _, starts, seq_lens = case
    schedule = schedule_prefill(
        starts, seq_lens, num_tokens=q.shape[0], num_heads=32, num_kv_heads=8, head_dim=head_dim,
        sliding_window=None, dtype=q.dtype, k_cache=k_cache,
    )  # fmt: skip
    assert schedule.config.hopper
    q.mul_(largest)
    for window in (None, 300):
        check_attention(case, window, tuned_for_cache=True, padding=3)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
def test_a_row_of_nothing_but_nan_spoils_no_other() -> None:
    """Its items are done again, to no avail."""
    case = paged_case([(100, 1300), (70, 70)], 32, 8, 128, torch.bfloat16)
    attend = partial(
        paged_attention_mixed, scale=0.1, sliding_window=None, max_query_len=100, max_seq_len=1300
    )
    expected = attend(*case)
    case[0][60] = float("nan")
    actual = attend(*case)
    others = torch.arange(len(expected), device=DEVICE) != 60
    assert actual[60].isnan().all()
    assert_close(actual[others], expected[others])


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
def test_a_chain_of_overlapping_prefills_reads_no_table_or_key_too_early() -> None:
    """Layers in a graph whose keys depend on the layer before; tables, lengths and earlier keys change between replays."""
    num_rows, num_layers, num_tokens, max_len = 6, 4, 400, 2000
    max_blocks = max_len // BLOCK_SIZE
    caches = random(num_layers, 2, 1 + num_rows * max_blocks, BLOCK_SIZE, 8, 128, dtype=torch.bfloat16)
    cos_sin, x = random(max_len, 128), random(num_tokens, 32, 128, dtype=torch.bfloat16)
    # What a step writes before its layers, by launches that do not overlap.
    given = [
        torch.zeros(num_rows, max_blocks, dtype=torch.int32, device=DEVICE),
        torch.zeros(num_rows + 1, dtype=torch.int32, device=DEVICE),
        torch.ones(num_rows, dtype=torch.int32, device=DEVICE),
        *(torch.zeros(num_tokens, dtype=torch.int64, device=DEVICE) for _ in range(2)),
    ]
    written = [each.clone() for each in given]

    def step(settled: bool) -> Tensor:
        for each, value in zip(written, given, strict=True):
            each.copy_(value)
        tables, starts, seq_lens, positions, slots = written
        schedule = schedule_prefill(
            starts, seq_lens, num_tokens=num_tokens, num_heads=32, num_kv_heads=8, head_dim=128,
            sliding_window=None, dtype=x.dtype, k_cache=caches[0, 0],
        )  # fmt: skip
        heads = x.clone()
        for cache in caches:
            q = rotary_embedding_cache(heads, heads[:, :8], heads[:, 8:16], cos_sin, positions, *cache, slots)
            heads = paged_attention_mixed(
                q, *cache, tables, starts, seq_lens, scale=0.1, sliding_window=None,
                max_query_len=num_tokens, max_seq_len=max_len, schedule=schedule, settled=settled,
            )  # fmt: skip
        return heads

    results: list[tuple[torch.cuda.CUDAGraph, Tensor]] = []
    for settled in (False, True):
        step(settled)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step(settled)
        results.append((graph, out))
    before = caches.clone()
    pick = Random(3)
    for _ in range(60):
        cuts = sorted(pick.sample(range(1, num_tokens), num_rows - 1))
        starts = torch.tensor([0, *cuts, num_tokens])
        cached = torch.tensor([pick.randint(0, max_len - num_tokens) for _ in range(num_rows)])
        tables = torch.randperm(num_rows * max_blocks).view(num_rows, -1) + 1
        row = torch.repeat_interleave(torch.arange(num_rows), starts.diff())
        positions = cached[row] + torch.arange(num_tokens) - starts[row]
        slots = tables[row, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        for each, value in zip(
            given, (tables, starts, cached + starts.diff(), positions, slots), strict=True
        ):
            each.copy_(value)
        x.normal_()
        outs: list[Tensor] = []
        for graph, out in results:
            caches.copy_(before)
            graph.replay()
            graph.replay()  # right behind: what the first one wrote is an earlier key of nobody, and is written again
            outs.append(out.clone())
        assert torch.equal(*outs)
        assert not outs[0].isnan().any()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize("num_heads", [16, 32])
def test_hopper_prefill_of_many_short_items_equals_reference(num_heads: int) -> None:
    pick = Random(5)
    for _ in range(3):
        lengths = [(new := pick.randint(1, 300), new + pick.choice([0, 0, 17, 400])) for _ in range(60)]
        case = paged_case([*lengths, (0, 0), (1, 50), (2, 2)], num_heads, 8, 128, torch.bfloat16)
        check_attention(case, None, tuned_for_cache=True, padding=pick.randint(0, 50))


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_PAGE_COPIES, reason="the kernel is for Hopper")
@pytest.mark.parametrize(
    "lengths", [[(256, 4096)], [(3, 3)], [(10, 10)] * 200, [(1, 70), (700, 1500), (40, 900)]]
)
def test_hopper_prefill_repeats_itself_bit_for_bit(lengths: list[tuple[int, int]]) -> None:
    """Neither who comes last to a tile nor how items are taken may show in the result, with items for few or for all."""
    case = paged_case(lengths, 32, 8, 128, torch.bfloat16)
    q, k_cache, _, _, starts, seq_lens = case
    schedule = schedule_prefill(
        starts, seq_lens, num_tokens=q.shape[0], num_heads=32, num_kv_heads=8, head_dim=128,
        sliding_window=None, dtype=q.dtype, k_cache=k_cache,
    )  # fmt: skip
    limits = {"max_query_len": max(new for new, _ in lengths), "max_seq_len": int(seq_lens.max())}
    first, *others = (
        paged_attention_mixed(*case, scale=0.1, sliding_window=None, **limits, schedule=schedule)
        for _ in range(50)
    )
    assert all(torch.equal(other, first) for other in others)
