"""Sampling, penalties and counts: each Triton kernel against its torch reference."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl
from quire_kernels.sampling.bias import BiasTable, TokenBias
from quire_kernels.sampling.gumbel import sample_gumbel
from quire_kernels.sampling.occurrence import OccurrenceTable, count_tokens
from quire_kernels.sampling.occurrence_rows import copy_rows, reset_rows
from quire_kernels.sampling.params import NO_TOKEN_LEFT, Penalties, SamplingTensors
from quire_kernels.sampling.philox import gumbel_from_bits, vocabulary_bits
from quire_kernels.sampling.reference import penalise, sample
from quire_kernels.sampling.search import loudest_bits_of_groups, noise_bound_of_bits, noise_of_bits

from tests.kernels.case import DEVICE, DTYPES, ON_GPU, random

pytestmark = pytest.mark.usefixtures("seeded")


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


@triton.jit
def _noise_kernel(bits, noise, bound, N: tl.constexpr):
    place = tl.arange(0, N)
    words = tl.load(bits + place).to(tl.uint32)
    tl.store(noise + place, noise_of_bits(words))
    tl.store(bound + place, noise_bound_of_bits(words))


def test_bound_of_the_noise_is_never_below_it_nor_further_above_than_its_gap() -> None:
    powers = [2**power + step for power in range(33) for step in (-2, -1, 0, 1)]
    words = sorted({word for power in powers for word in (power, 2**32 - power) if 0 <= word < 2**32})
    num_words = 4096
    bits = torch.randint(2**32, (num_words,), device=DEVICE)
    bits[: len(words)] = torch.tensor(words, device=DEVICE)
    noise, bound = torch.empty(2, num_words, device=DEVICE)
    _noise_kernel[(1,)](bits, noise, bound, N=num_words)
    torch.testing.assert_close(noise, gumbel_from_bits(bits))
    above, rounding = bound - noise, 1e-4
    assert above.min() > -rounding
    assert above.max() < 3.2, "the logarithm of 23, and what an interpolated logarithm is low by"


@triton.jit
def _loudest_kernel(loudest, seed, position, sequence_index, N: tl.constexpr):
    group = tl.arange(0, N)
    tl.store(loudest + group, loudest_bits_of_groups(group, seed, position, sequence_index).to(tl.int64))


def test_loudest_bits_are_those_of_four_tokens() -> None:
    num_groups, facts = 64, torch.tensor([-7_919_000_000_007, 700, 3], device=DEVICE)
    loudest = torch.empty(num_groups, dtype=torch.int64, device=DEVICE)
    _loudest_kernel[(1,)](loudest, *facts.tolist(), N=num_groups)
    seed, position, index = facts.unsqueeze(1)
    bits = vocabulary_bits(seed, index, position, 4 * num_groups)
    assert torch.equal(loudest, bits.view(num_groups, 4).amax(1))


def test_equal_logits_draw_the_lowest_token_wherever_their_chunks_lie() -> None:
    num_rows, vocab_size = 6, 9001
    logits = torch.zeros(num_rows, vocab_size, device=DEVICE)
    for row, tokens in enumerate(
        ((1024, 20), (3072, 2064, 1040), (8192, 4097, 4096), (9000, 4352), (63, 64), ())
    ):
        logits[row, list(tokens)] = 1.0
    params = replace(sampling_tensors(num_rows), temperature=torch.zeros(num_rows, device=DEVICE))
    assert sample_gumbel(logits, params).tolist() == [20, 1040, 4096, 4352, 63, 0]


@pytest.mark.parametrize("peak", [0.0, 9.0, 14.0])
def test_draws_without_masks_equal_the_reference_whatever_the_noise_of_the_likeliest(peak: float) -> None:
    num_rows, vocab_size = (2000, 32_000) if ON_GPU else (28, 4500)
    logits = random(num_rows, vocab_size)
    logits[torch.arange(num_rows), torch.randint(vocab_size, (num_rows,))] += peak
    params = replace(
        sampling_tensors(num_rows),
        top_k=torch.zeros(num_rows, dtype=torch.int32, device=DEVICE),
        top_p=torch.ones(num_rows, device=DEVICE),
        min_p=torch.zeros(num_rows, device=DEVICE),
    )
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
    """Penalties on the device of the table."""
    num_slots, device = table.addresses.shape[0], table.addresses.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor((values * num_slots)[:num_slots], device=device)

    return Penalties(
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        repetition=column([1.0, 1.3, 0.8, 2.0]),
        frequency=column([0.7, 0.0, -0.5]),
        presence=column([0.4, -1.1, 0.0, 0.0, 1.5]),
        occurrences=table,
        biases=BiasTable(num_slots, table.vocab_size, device),
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
        expected = sample(penalise(logits.cpu(), truth).to(DEVICE), params)
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


@pytest.mark.parametrize("vocab_size", [7, 6000])
def test_a_row_of_which_every_token_is_forbidden_draws_none_and_notes_none(vocab_size: int) -> None:
    logits, params = random(14, vocab_size), sampling_tensors(14)
    logits[::2] = -float("inf")  # each kind of row of the parameters, once with a choice and once without
    table = OccurrenceTable(14, vocab_size, DEVICE)
    table.admit(list(range(14)), [[1, 2]] * 14, [1] * 14)
    before = [table.row(slot).clone() for slot in range(14)]
    penalties = penalties_of(list(range(14)), table)
    penalties.biases.admit([3, 4], [TokenBias(words=[[1, 2]]), TokenBias(allowed=[5], words=[[5], [1, 2]])])
    logits[4] = 1.0
    expected = sample(penalise(logits, penalties), params)
    tokens = sample_gumbel(logits, params, None, penalties)
    assert tokens.tolist()[::2] == [NO_TOKEN_LEFT] * 7
    assert min(tokens.tolist()[1::2]) >= 0
    assert torch.equal(tokens, expected)
    for slot in range(14):
        assert torch.equal(table.row(slot), before[slot]) == (slot % 2 == 0), slot
