"""Biases and forbidden words of slots: what they are, and that the sampler's kernels read and write them as torch does."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels import BiasTable, OccurrenceTable, Penalties, SamplingTensors, TokenBias
from quire_kernels.sampling.gumbel import sample_gumbel
from quire_kernels.sampling.reference import penalise, sample

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CPU = torch.device("cpu")
NUM_SLOTS = 8
FORBIDDEN = float("-inf")


def penalties_over(table: BiasTable, vocab_size: int, slots: list[int], device: torch.device) -> Penalties:
    """Row i draws for `slots[i]`; no slot has seen anything, and slot 2 alone counts what it draws."""
    occurrences = OccurrenceTable(NUM_SLOTS, vocab_size, device)
    occurrences.admit([2], [[1, 2, 3]], [2])
    ones = torch.ones(NUM_SLOTS, device=device)
    return Penalties(
        slots=torch.tensor(slots, dtype=torch.int32, device=device),
        repetition=1.5 * ones,
        frequency=0.5 * ones,
        presence=0.25 * ones,
        occurrences=occurrences,
        biases=table,
    )


def sampling_tensors(num_rows: int, step: int) -> SamplingTensors:
    def column(values: list[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor((values * num_rows)[:num_rows], dtype=dtype, device=DEVICE)

    return SamplingTensors(
        temperature=column([0.0, 0.8, 1.3], torch.float32),
        top_k=column([0, 3, 0, 50], torch.int32),
        top_p=column([1.0, 0.9], torch.float32),
        min_p=column([0.0, 0.0, 0.0, 0.0, 0.1], torch.float32),
        seed=column([3, 5, 7, 11], torch.int64),
        sequence_index=column([0], torch.int32),
        position=column([step], torch.int32),
    )


def test_a_row_adds_allows_and_forbids() -> None:
    table = BiasTable(NUM_SLOTS, 6, CPU)
    table.admit([3], [TokenBias(biases={1: 2.5, 4: -1.0}, allowed=[0, 1, 4, 5], words=[[5]])])
    assert table.row(3).tolist() == [0.0, 2.5, FORBIDDEN, FORBIDDEN, -1.0, FORBIDDEN]
    assert table.rows[3] == table.row(3).data_ptr()
    table.release([3, 4])
    assert (len(table), table.row(3), table.rows.tolist()) == (0, None, [0] * NUM_SLOTS)


def test_a_word_forbids_its_last_token_after_the_others_alone() -> None:
    table = BiasTable(NUM_SLOTS, 8, CPU)
    table.admit([0], [TokenBias(biases={5: 1.5}, words=[[2, 3, 5], [4, 5], [3, 6]], drawn=[2])])
    assert table.row(0).tolist() == [0, 0, 0, 0, 0, 1.5, 0, 0]
    table.note_drawn(0, 3)
    assert table.row(0).tolist() == [0, 0, 0, 0, 0, FORBIDDEN, FORBIDDEN, 0]
    table.note_drawn(0, 4)
    assert table.row(0).tolist() == [0, 0, 0, 0, 0, FORBIDDEN, 0, 0]
    table.note_drawn(0, 3)
    assert table.row(0).tolist() == [0, 0, 0, 0, 0, 1.5, FORBIDDEN, 0]


def test_a_resumed_sequence_goes_on_with_the_words_that_it_had_begun() -> None:
    table = BiasTable(NUM_SLOTS, 8, CPU)
    table.admit([1], [TokenBias(words=[[2, 3, 5]], drawn=[7, 2, 3])])
    assert table.row(1)[5] == FORBIDDEN


def test_a_child_goes_its_own_way_from_its_parents_words() -> None:
    table = BiasTable(NUM_SLOTS, 8, CPU)
    table.admit([1], [TokenBias(words=[[2, 5]])])
    table.fork([(1, 6), (0, 7)])
    table.note_drawn(6, 2)
    assert (table.row(1)[5], table.row(6)[5], table.row(7)) == (0.0, FORBIDDEN, None)


@pytest.mark.parametrize("vocab_size", [40, 5003])
def test_the_sampler_draws_and_notes_as_torch_does(vocab_size: int) -> None:
    rng = random.Random(vocab_size)
    torch.manual_seed(vocab_size)
    on_device, on_host = BiasTable(NUM_SLOTS, vocab_size, DEVICE), BiasTable(NUM_SLOTS, vocab_size, CPU)
    few = [rng.randrange(vocab_size) for _ in range(6)]
    # Words over six tokens that are likely everywhere, so that many of them are begun, and some of them end alike.
    words = [[rng.choice(few) for _ in range(length)] for length in [1, *[2] * 8, *[3] * 90, 32]]
    slots = [4, 0, 7, 3, 2, 6]
    for table in (on_device, on_host):
        table.admit([0], [TokenBias(words=words)])
        table.admit(
            [2, 4], [TokenBias(biases={few[0]: 3.0}, words=words[9:], drawn=few), TokenBias(allowed=few)]
        )
        table.admit([3], [TokenBias(allowed=few, words=[few[:2], few[1:3]])])
        table.fork([(0, 6)])
    penalties = penalties_over(on_device, vocab_size, slots, DEVICE)
    truth = penalties_over(on_host, vocab_size, slots, CPU)
    draws = torch.tensor([1, 1, 1, 1, 1, 0], dtype=torch.int32, device=DEVICE)
    num_forbidden = 0
    for step in range(12):
        params = sampling_tensors(len(slots), step)
        logits = torch.randn(len(slots), vocab_size, device=DEVICE)
        logits[:, few] += 6.0
        expected = sample(penalise(logits.cpu(), truth).to(DEVICE), params)
        tokens = sample_gumbel(logits, params, draws, penalties)
        assert torch.equal(tokens[draws == 1], expected[draws == 1]), step
        free = sample(
            penalise(logits.cpu(), replace(truth, biases=BiasTable(NUM_SLOTS, 1, CPU))).to(DEVICE), params
        )
        num_forbidden += int((free != expected).sum())
        for slot, token, draw in zip(slots, tokens.tolist(), draws.tolist(), strict=True):
            if draw:
                on_host.note_drawn(slot, token)
                truth.occurrences.count(slot, token)
        for slot in (0, 2, 3, 4, 6):
            assert torch.equal(on_device.row(slot).cpu(), on_host.row(slot)), (step, slot)
    assert num_forbidden > 5
