"""Attention over pages: the Triton kernels against their torch reference."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.attention import decode
from quire_kernels.attention.decode import takes_pages
from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig, decode_config, prefill_hopper_config
from quire_kernels.rotary.heads import rotary_embedding_cache

from tests.kernels.case import BLOCK_SIZE, DEVICE, DTYPES, HAS_FP8, ON_GPU, assert_close, random

pytestmark = pytest.mark.usefixtures("seeded")

HAS_PAGE_COPIES = ON_GPU and torch.cuda.get_device_capability()[0] == 9
HEADS = [(4, 4), (8, 4), (6, 2), (14, 2), (8, 1), (32, 8)] if ON_GPU else [(2, 2), (6, 2), (8, 1)]


def paged_case(
    lengths: list[tuple[int, int]], num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Make inputs for (query_len, seq_len) pairs; slots that hold no token, and spare table entries, hold
    NaN.
    """
    seq_lens = torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32)
    query_lens = torch.tensor([0, *(query_len for query_len, _ in lengths)], dtype=torch.int32)
    max_blocks = -(-int(seq_lens.max()) // BLOCK_SIZE) + 1
    num_blocks = 1 + len(lengths) * max_blocks
    tables = (torch.randperm(num_blocks - 1)[: len(lengths) * max_blocks] + 1).view(len(lengths), max_blocks)
    caches = torch.full(
        (2, num_blocks, BLOCK_SIZE, num_kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE
    )
    for row, (_, seq_len) in enumerate(lengths):
        position = torch.arange(seq_len)
        where = tables[row, position // BLOCK_SIZE], position % BLOCK_SIZE
        caches[:, where[0].to(DEVICE), where[1].to(DEVICE)] = random(
            2, seq_len, num_kv_heads, head_dim, dtype=dtype
        )
    starts = query_lens.cumsum(0, dtype=torch.int32)
    q = random(int(starts[-1]), num_heads, head_dim, dtype=dtype)
    return q, caches[0], caches[1], tables.int().to(DEVICE), starts.to(DEVICE), seq_lens.to(DEVICE)


def check_attention(
    case: tuple[Tensor, ...],
    window: int | None,
    *,
    decode: DecodeConfig | None = None,
    prefill: PrefillConfig | None = None,
    tuned_for_cache: bool = False,
    padding: int = 0,
    settled: bool = True,
) -> None:
    """Compare with the reference; with ``padding`` tables and q grow by so many poisoned rows, without query tokens.

    Without ``prefill`` its settings are those for any cache, or those for this one, and may name another kernel.
    """
    q, k_cache, v_cache, tables, starts, seq_lens = case
    options = {
        "scale": q.shape[2] ** -0.5,
        "sliding_window": window,
        "max_query_len": int(starts.diff().max()),
        "max_seq_len": int(seq_lens.max()),
    }
    expected = paged_attention(*case, **options)
    num_tokens = q.shape[0]
    poison = torch.randint(-(2**31), 2**31 - 1, (padding,), dtype=torch.int32, device=DEVICE)
    q = torch.cat((q, torch.full_like(q[:1], float("nan")).expand(padding, -1, -1)))
    starts, seq_lens = torch.cat((starts, starts[-1:].expand(padding))), torch.cat((seq_lens, poison))
    tables = torch.cat((tables, poison[:, None].expand(-1, tables.shape[1])))
    schedule = None
    if options["max_query_len"] > 1:
        schedule = schedule_prefill(
            starts,
            seq_lens,
            num_tokens=q.shape[0],
            num_heads=q.shape[1],
            num_kv_heads=k_cache.shape[2],
            head_dim=q.shape[2],
            sliding_window=window,
            dtype=q.dtype,
            k_cache=k_cache if tuned_for_cache else None,
            config=prefill,
        )
    for _ in range(2):  # a second layer finds the scratch memory as the first one left it
        starts = starts.clone()  # the ordinary launch that ``settled`` promises
        actual = paged_attention_mixed(
            q, k_cache, v_cache, tables, starts, seq_lens,
            **options, schedule=schedule, decode=decode, settled=settled,
        )  # fmt: skip
        assert_close(actual[:num_tokens], expected)


BOUNDARIES = [(1, 1), (1, 15), (1, 16), (1, 17), (0, 0), (1, 63), (1, 64), (1, 65)]
MIXED = [(1, 33), (17, 17), (5, 40), (0, 0), (16, 16), (2, 50), (1, 1), (33, 70)]


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


# A prefix of many tiles, queries on either side of a split, and rows too short to be split.
LONG = [(3, 150), (20, 130), (0, 0), (2, 2), (1, 90), (34, 35)]


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
