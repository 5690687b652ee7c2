"""Each Triton kernel against its torch reference: on the GPU where there is one, else under the interpreter.

The interpreter multiplies bfloat16 matrices wrongly without an error, so there everything is float32 and
small.
"""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.activation.reference import silu_and_mul
from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles
from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig
from quire_kernels.blocks.copy import copy_blocks_spans
from quire_kernels.blocks.reference import copy_blocks
from quire_kernels.norm.reference import fused_add_rms_norm, rms_norm
from quire_kernels.norm.rows import fused_add_rms_norm_rows, rms_norm_rows
from quire_kernels.rotary.heads import rotary_embedding_cache, rotary_embedding_heads
from quire_kernels.rotary.reference import rotary_embedding, rotary_embedding_and_cache
from quire_kernels.sampling.gumbel import sample_gumbel
from quire_kernels.sampling.occurrence import OccurrenceTable, count_tokens
from quire_kernels.sampling.occurrence_rows import copy_rows, reset_rows
from quire_kernels.sampling.params import Penalties, SamplingTensors
from quire_kernels.sampling.reference import penalise, sample

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if ON_GPU else [torch.float32]
HAS_FP8 = not ON_GPU or torch.cuda.get_device_capability() >= (8, 9)
BLOCK_SIZE = 16
HEADS = [(4, 4), (8, 4), (6, 2), (14, 2), (8, 1), (32, 8)] if ON_GPU else [(2, 2), (6, 2), (8, 1)]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert not actual.isnan().any()
    assert relative_error(actual, expected) < (2e-6 if actual.dtype == torch.float32 else 6e-3)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 64), (3, 100), (5, 4096 if ON_GPU else 129)])
def test_rms_norm_equals_reference(rows: int, columns: int, dtype: torch.dtype) -> None:
    x, residual, weight = (
        random(*shape, dtype=dtype) for shape in ((rows, columns), (rows, columns), (columns,))
    )
    assert_close(rms_norm_rows(x, weight, 1e-5), rms_norm(x, weight, 1e-5))
    for actual, expected in zip(
        fused_add_rms_norm_rows(x, residual, weight, 1e-5),
        fused_add_rms_norm(x, residual, weight, 1e-5),
        strict=True,
    ):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_takes_a_slice_of_heads(dtype: torch.dtype) -> None:
    fused, weight = random(7, 5, 96, dtype=dtype), random(96, dtype=dtype)
    assert_close(rms_norm_rows(fused[:, 1:4], weight, 1e-6), rms_norm(fused[:, 1:4], weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 100, 1025])
def test_silu_and_mul_equals_reference(width: int, dtype: torch.dtype) -> None:
    x = random(3, 2 * width, dtype=dtype)
    assert_close(silu_and_mul_tiles(x), silu_and_mul(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 80), (96, 32), (128, 128)])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rotary_embedding_and_cache_equals_reference(
    head_dim: int, rotary_dim: int, with_norm: bool, dtype: torch.dtype
) -> None:
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


@pytest.mark.skipif(ON_GPU and not HAS_FP8, reason="the GPU has no 8-bit floats")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cache_of_8_bits_is_written_as_by_the_reference(dtype: torch.dtype) -> None:
    q, k, v = (10 * random(9, heads, 48, dtype=dtype) for heads in (4, 2, 2))
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


def test_copies_of_blocks_are_applied_in_order() -> None:
    caches = random(2, 2, 8, BLOCK_SIZE, 3, 20)
    expected = caches.clone()
    pairs = torch.tensor([[1, 2], [2, 3], [5, 1], [0, 0]], device=DEVICE)
    copy_blocks_spans(caches, pairs)
    copy_blocks(expected, pairs)
    assert torch.equal(caches, expected)
    copy_blocks_spans([caches[0, 0]], torch.tensor([[7, 6]], device=DEVICE))
    assert torch.equal(caches[0, 0, 6], caches[0, 0, 7])


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
    padding: int = 0,
) -> None:
    """Compare with the reference; with ``padding`` tables and q grow by so many poisoned rows, without query tokens."""
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
            element_size=q.element_size(),
            config=prefill,
        )
    for _ in range(2):  # a second layer finds the scratch memory as the first one left it
        actual = paged_attention_mixed(
            q, k_cache, v_cache, tables, starts, seq_lens, **options, schedule=schedule, decode=decode
        )
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
    check_attention(case, window, prefill=small, padding=5)
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
        assert int(schedule.item_starts[-1]) <= schedule.max_items
        return schedule.splits.tolist()

    assert splits((64, 1600)) == [5]  # four tiles for twenty programs
    assert splits((640, 1600)) == [1]  # forty tiles
    assert splits((16, 40)) == [2]  # 32 keys and more
    assert splits((16, 1600), (160, 160)) == [10, 1]  # the long one holds half of the work


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
def test_one_captured_graph_serves_every_mixed_batch_of_its_bucket() -> None:
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


def sampling_tensors(num_rows: int) -> SamplingTensors:
    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor((values * num_rows)[:num_rows], dtype=dtype, device=DEVICE)

    return SamplingTensors(
        temperature=column([0.0, 0.6, 1.0, 1.0, 1.3, 0.7, 1.0], torch.float32),
        top_k=column([5, 0, 3, 0, 0, 50, 1], torch.int32),
        top_p=column([0.5, 1.0, 1.0, 0.8, 1.0, 0.9, 1.0], torch.float32),
        min_p=column([0.0, 0.0, 0.0, 0.0, 0.05, 0.01, 0.0], torch.float32),
        seed=torch.arange(num_rows, device=DEVICE) * -7_919_000_000_007,
        sequence_index=torch.arange(num_rows, device=DEVICE, dtype=torch.int32) % 4,
        position=torch.arange(num_rows, device=DEVICE, dtype=torch.int32) + 3,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [7, 1001] if not ON_GPU else [7, 1001, 32000, 151_936])
def test_sampler_chooses_what_the_reference_chooses(vocab_size: int, dtype: torch.dtype) -> None:
    num_rows = 14 if not ON_GPU else 70
    logits, params = 3 * random(num_rows, vocab_size, dtype=dtype), sampling_tensors(num_rows)
    assert torch.equal(sample_gumbel(logits, params), sample(logits, params))


@pytest.mark.parametrize("min_p", [0.0, 1e-4])
def test_nucleus_is_a_share_of_the_whole_row_not_of_its_candidates(min_p: float) -> None:
    num_rows, vocab_size = (2000, 32_000) if ON_GPU else (240, 4500)
    logits = 4 * random(
        num_rows, vocab_size
    )  # a few hundred candidates, which hold most of the mass but not all
    params = replace(
        sampling_tensors(num_rows),
        temperature=torch.ones(num_rows, device=DEVICE),
        top_k=torch.zeros(num_rows, dtype=torch.int32, device=DEVICE),
        top_p=torch.full((num_rows,), 0.7, device=DEVICE),
        min_p=torch.full((num_rows,), min_p, device=DEVICE),
    )
    assert torch.equal(sample_gumbel(logits, params), sample(logits, params))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_nuclei_and_clustered_maxima_are_found_in_the_whole_row(dtype: torch.dtype) -> None:
    vocab_size = 151_936 if ON_GPU else 5003
    logits = random(14, vocab_size, dtype=dtype) / 4  # so flat that a nucleus holds thousands of tokens
    logits[7:, :3000] += 8.0  # thousands of candidates in a few chunks
    params = sampling_tensors(14)
    params.top_k[:] = torch.tensor([0, 0, 2500, 0, 60, 1, 3000] * 2, device=DEVICE)
    assert torch.equal(sample_gumbel(logits, params), sample(logits, params))


def penalties_of(slots: list[int], table: OccurrenceTable) -> Penalties:
    num_slots = table.addresses.shape[0]

    def column(values: list[float]) -> Tensor:
        return torch.tensor((values * num_slots)[:num_slots], device=DEVICE)

    return Penalties(
        slots=torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        repetition=column([1.0, 1.3, 0.8, 2.0]),
        frequency=column([0.7, 0.0, -0.5]),
        presence=column([0.4, -1.1, 0.0, 0.0, 1.5]),
        occurrences=table,
    )


def penalised_tables(vocab_size: int, num_slots: int) -> tuple[OccurrenceTable, OccurrenceTable]:
    """One table filled by the kernels, and one, on the CPU, filled by torch, with the same tokens."""
    tables = (
        OccurrenceTable(num_slots, vocab_size, DEVICE),
        OccurrenceTable(num_slots, vocab_size, torch.device("cpu")),
    )
    slots = list(range(0, num_slots, 2))
    tokens = [torch.randint(vocab_size, (5 + 20 * slot,)).tolist() for slot in slots]
    for table in tables:
        table.admit(slots, tokens, [3 + 9 * slot for slot in slots])
        table.fork([(2, 3), (1, 5)])
    return tables


@pytest.mark.parametrize("vocab_size", [40, 4200])
def test_occurrences_filled_on_the_device_equal_those_of_torch(vocab_size: int) -> None:
    addresses = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    table = torch.full((3, 4224), 77, dtype=torch.int16, device=DEVICE)
    tokens = [torch.randint(vocab_size, (length,)).tolist() for length in (1, 150, 70)]
    prompt_lens = [1, 10, 0]
    records, start = [], 0
    for slot, row_tokens in enumerate(tokens):
        records.append((table[slot].data_ptr(), slot + 1, start, prompt_lens[slot], len(row_tokens)))
        start += len(row_tokens)
    flat = torch.tensor([token for row in tokens for token in row], dtype=torch.int32, device=DEVICE)
    reset_rows(torch.tensor(records, device=DEVICE), flat, addresses, 4224)
    for slot, row_tokens in enumerate(tokens):
        expected = torch.empty(4224, dtype=torch.int16)
        count_tokens(expected, torch.tensor(row_tokens), prompt_lens[slot])
        assert torch.equal(table[slot].cpu(), expected)
    copied = torch.zeros_like(table)
    pairs = [(table[row].data_ptr(), copied[row].data_ptr(), row) for row in (0, 2)]
    copy_rows(torch.tensor(pairs, device=DEVICE), addresses, 4224)
    assert torch.equal(copied[[0, 2]], table[[0, 2]])
    assert not copied[1].any()
    assert addresses.tolist() == [copied[0].data_ptr(), records[0][0], copied[2].data_ptr(), records[2][0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab_size", [40, 5003] if not ON_GPU else [40, 5003, 151_936])
def test_penalised_draws_equal_reference_and_are_counted(vocab_size: int, dtype: torch.dtype) -> None:
    on_device, on_host = penalised_tables(vocab_size, 8)
    slots = [4, 0, 7, 3, 2, 6, 1]
    params, penalties, truth = (
        sampling_tensors(7),
        penalties_of(slots, on_device),
        penalties_of(slots, on_host),
    )
    draws = torch.tensor([1, 1, 1, 1, 1, 0, 1], dtype=torch.int32, device=DEVICE)
    for step in range(3):
        logits = 3 * random(7, vocab_size, dtype=dtype)
        expected = sample(penalise(logits, truth).to(DEVICE), params)
        tokens = sample_gumbel(logits, params, draws, penalties)
        assert torch.equal(tokens[draws == 1], expected[draws == 1]), step
        for slot, token, draw in zip(slots, tokens.tolist(), draws.tolist(), strict=True):
            if draw:
                on_host.count(slot, token)
        for slot in (0, 2, 3, 4, 6):
            assert torch.equal(on_device.row(slot).cpu(), on_host.row(slot))
    on_device.release([4, 0, 1, 4])  # a slot may be released and admitted again by one plan
    assert on_device.addresses[[0, 1, 4, 5, 7]].tolist() == [0] * 5
    assert bool((on_device.addresses[[2, 3, 6]] != 0).all())


def test_sampler_takes_the_lowest_of_equal_maxima_and_never_a_forbidden_token() -> None:
    logits = torch.full((14, 6000), -float("inf"), device=DEVICE)
    logits[:, 4097] = logits[:, 5003] = 2.0
    tokens = sample_gumbel(logits, sampling_tensors(14))
    assert tokens[0] == tokens[7] == 4097
    assert set(tokens.tolist()) <= {4097, 5003}
