"""Attention of steps with prompts over pages: the Triton kernels against their torch reference."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig, prefill_hopper_config

from tests.kernels.attention_case import BOUNDARIES, HEADS, LONG, MIXED, check_attention, paged_case
from tests.kernels.case import BLOCK_SIZE, DEVICE, DTYPES, HAS_FP8, ON_GPU, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
@pytest.mark.parametrize("window", [None, 20])
def test_mixed_attention_equals_reference(
    num_heads: int, num_kv_heads: int, window: int | None, dtype: torch.dtype
) -> None:
    head_dim = 128 if ON_GPU and num_heads > 6 else 24
    case = paged_case(
        MIXED + ([(700, 1500), (1, 900)] if ON_GPU else []), num_heads, num_kv_heads, head_dim, dtype
    )
    small = PrefillConfig(rows=16, tile=16, num_warps=4, num_stages=2)
    for shortest in (1, 2):
        check_attention(case, window, prefill=replace(small, shortest=shortest), padding=5)
    if ON_GPU:
        check_attention(case, window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), HEADS)
@pytest.mark.parametrize("window", [None, 20, 70])
@pytest.mark.parametrize("num_programs", [5, 100])
def test_prefill_in_splits_equals_reference(
    num_heads: int,
    num_kv_heads: int,
    window: int | None,
    num_programs: int,
    dtype: torch.dtype,
) -> None:
    head_dim = 128 if ON_GPU and num_heads > 6 else 24
    case = paged_case(
        LONG + ([(40, 4000), (100, 100)] if ON_GPU else []), num_heads, num_kv_heads, head_dim, dtype
    )
    config = PrefillConfig(
        rows=16, tile=16, num_warps=4, num_stages=2, num_programs=num_programs, min_split=32
    )  # fmt: skip
    check_attention(case, window, prefill=config, padding=4)


def test_prefill_is_split_only_where_tiles_are_few() -> None:
    config = PrefillConfig(rows=16, tile=16, num_warps=4, num_stages=2, num_programs=20, min_split=32)

    def splits(*lengths: tuple[int, int]) -> list[int]:
        query_lens = torch.tensor([0, *(query_len for query_len, _ in lengths)], dtype=torch.int32)
        schedule = schedule_prefill(
            query_lens.cumsum(0, dtype=torch.int32).to(DEVICE),
            torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32, device=DEVICE),
            num_tokens=int(query_lens.sum()), num_heads=2, num_kv_heads=2, head_dim=16, sliding_window=None,
            config=config,
        )  # fmt: skip
        num_items = int(schedule.num_items)
        assert num_items <= schedule.max_items < len(schedule.items)
        assert (schedule.items[:, 0] >= 0).tolist() == [n < num_items for n in range(len(schedule.items))]
        # From the last row to the first, of each from its last tile to the first, and of that the first split last.
        order = schedule.items[:num_items, [0, 4, 6]].tolist()
        assert order == sorted(order, reverse=True)
        by_row = {row: num_splits for row, *_, num_splits, _, _ in schedule.items[:num_items].tolist()}
        return [by_row[row] for row in range(len(lengths))]

    assert splits((64, 1600)) == [5]  # four tiles for twenty programs
    assert splits((640, 1600)) == [1]  # forty tiles
    assert splits((16, 40)) == [2]  # 32 keys and more
    assert splits((16, 1600), (160, 160)) == [10, 1]  # the long one holds half of the work


@pytest.mark.skipif(ON_GPU and not HAS_FP8, reason="the GPU has no 8-bit floats")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 20])
def test_attention_over_a_cache_of_8_bits_equals_reference(window: int | None, dtype: torch.dtype) -> None:
    q, k_cache, v_cache, *rest = paged_case(MIXED, 6, 2, 64 if ON_GPU else 24, dtype)
    caches = [cache.float().to(torch.float8_e4m3fn) for cache in (k_cache, v_cache)]
    prefill = PrefillConfig(rows=16, tile=16, num_warps=4, num_stages=2)
    check_attention((q, *caches, *rest), window, prefill=prefill, padding=2)
    config = DecodeConfig(tile=16, num_splits=2, min_split=16, num_warps=4, num_stages=2)
    decode_only = paged_case(BOUNDARIES, 6, 2, 64 if ON_GPU else 24, dtype)
    narrow = [cache.float().to(torch.float8_e4m3fn) for cache in decode_only[1:3]]
    check_attention((decode_only[0], *narrow, *decode_only[3:]), window, decode=config)


def test_scales_of_the_cache_multiply_keys_and_values() -> None:
    q, k_cache, v_cache, *rest = paged_case(MIXED, 4, 2, 16, torch.float32)
    options = {"sliding_window": None, "max_query_len": 33, "max_seq_len": 70}
    expected = paged_attention(q, k_cache * 0.5, v_cache * 3.0, *rest, scale=0.25, **options)
    actual = paged_attention_mixed(q, k_cache, v_cache, *rest, scale=0.25 * 0.5, v_scale=3.0, **options)
    assert_close(actual, expected)


@pytest.mark.parametrize("seed", range(20 if ON_GPU else 6))
def test_attention_of_random_ragged_batches_equals_reference(seed: int) -> None:
    pick = Random(seed)
    longest = 400 if ON_GPU else 60
    lengths: list[tuple[int, int]] = []
    for _ in range(pick.randint(1, 40 if ON_GPU else 9)):
        seq_len = pick.randint(1, longest)
        lengths.append((pick.choice([0, 1, 1, pick.randint(1, seq_len)]), seq_len))
    lengths.append((1, longest))
    case = paged_case(lengths, 4, 2, 16, torch.float32)
    prefill = PrefillConfig(
        rows=16, tile=16, num_warps=2, num_stages=2, num_programs=pick.choice([1, 9, 50]), min_split=16
    )  # fmt: skip
    window = pick.choice([None, pick.randint(1, longest)])
    check_attention(case, window, prefill=prefill, padding=pick.randint(0, 50))


def test_single_tokens_are_left_to_decode_where_sequences_are_many() -> None:
    shortest = [
        prefill_hopper_config(132, 8, num_sequences).shortest for num_sequences in (1, 32, 64, 65, 512)
    ]
    assert shortest == [1, 1, 1, 2, 2]


@pytest.mark.gpu
@pytest.mark.parametrize("seed", range(12))
def test_tuned_prefill_of_random_ragged_batches_equals_reference(seed: int) -> None:
    pick = Random(seed)
    lengths: list[tuple[int, int]] = []
    for _ in range(pick.randint(1, 40)):
        seq_len = pick.randint(1, 900)
        lengths.append((pick.choice([0, 1, 1, pick.randint(1, seq_len)]), seq_len))
    case = paged_case([*lengths, (2, 900)], 8, 2, 128, torch.bfloat16)
    window = pick.choice([None, None, 150])
    for tuned_for_cache in (True, False):
        check_attention(case, window, tuned_for_cache=tuned_for_cache, padding=pick.randint(0, 50))


@pytest.mark.gpu
@pytest.mark.parametrize("tuned_for_cache", [True, False])
def test_one_captured_graph_serves_every_mixed_batch_of_its_bucket(tuned_for_cache: bool) -> None:
    num_rows, num_tokens, max_blocks = 64, 512, 40
    caches = random(2, 1 + num_rows * max_blocks, BLOCK_SIZE, 2, 64, dtype=torch.bfloat16)
    q = random(num_tokens, 8, 64, dtype=torch.bfloat16)
    tables = torch.arange(1, 1 + num_rows * max_blocks, device=DEVICE, dtype=torch.int32).view(num_rows, -1)
    starts = torch.zeros(num_rows + 1, dtype=torch.int32, device=DEVICE)
    seq_lens = torch.zeros_like(starts[1:])
    options = {"scale": 0.1, "sliding_window": None, "max_query_len": num_tokens, "max_seq_len": 640}

    def step() -> Tensor:
        schedule = schedule_prefill(
            starts, seq_lens, num_tokens=num_tokens, num_heads=8, num_kv_heads=2, head_dim=64, sliding_window=None,
            k_cache=caches[0] if tuned_for_cache else None,
        )  # fmt: skip
        return paged_attention_mixed(q, *caches, tables, starts, seq_lens, **options, schedule=schedule)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for query_lens in ([1] * 64, [512], [1] * 30 + [200, 2, 100, 1], [2] * 64, [3, 1]):
        count = len(query_lens)
        lens = torch.tensor(query_lens, dtype=torch.int32)
        starts.fill_(int(lens.sum()))
        starts[: count + 1] = torch.cat((torch.zeros(1), lens.cumsum(0))).int().to(DEVICE)
        seq_lens.random_(0, 1000)
        seq_lens[:count] = (lens + torch.randint(0, 128, (count,))).int().to(DEVICE)
        graph.replay()
        total = int(lens.sum())
        case = (q[:total], *caches, tables[:count], starts[: count + 1], seq_lens[:count])
        assert_close(out[:total], paged_attention(*case, **options))


def test_attention_refuses_tables_of_another_batch() -> None:
    q, k_cache, v_cache, tables, starts, seq_lens = paged_case([(1, 3)], 2, 2, 16, torch.float32)
    with pytest.raises(ValueError, match="block_tables"):
        paged_attention_mixed(
            q, k_cache, v_cache, tables[:0], starts, seq_lens,
            scale=1.0, sliding_window=None, max_query_len=1, max_seq_len=3,
        )  # fmt: skip
