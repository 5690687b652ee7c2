"""The slot kernels against their torch references: on the GPU where there is one, else under the interpreter."""

from dataclasses import fields

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.sampling.params import NO_TOKEN_LEFT
from quire_kernels.slots import reference, step, update
from quire_kernels.slots.state import ADMISSION_WIDTH, SlotState, StepRows, StepTensors, allocate_slot_state

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_SLOTS, MAX_BLOCKS, BLOCK_SIZE, VOCAB = 6, 5, 4, 40


def ints(*values: object) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values[0], dtype=torch.int32, device=DEVICE)


def copy_of(state: SlotState) -> SlotState:
    return SlotState(**{field.name: getattr(state, field.name).clone() for field in fields(state)})


def assert_same(actual: object, expected: object) -> None:
    for field in fields(expected):  # type: ignore[arg-type]
        assert torch.equal(getattr(actual, field.name), getattr(expected, field.name)), field.name


def float_bits(value: float) -> int:
    return int(torch.tensor(value).view(torch.int32))


def record(slot: int, *, stops_at: int = 0, num_stops: int = 0, seed: int = 5, min_len: int = 0) -> list[int]:
    halves = torch.tensor([seed]).view(torch.int32).tolist()
    floats = [float_bits(value) for value in (0.7, 0.9, 0.05)]
    penalties = [float_bits(value) for value in (1.2, 0.5, -0.25)]
    fields_ = [slot, 3 + slot, 11, 2, min_len, num_stops, *floats, stops_at, *halves, *penalties]
    return fields_ + [0] * (ADMISSION_WIDTH - len(fields_))


def changes(records: Tensor, grants: Tensor, stops: Tensor) -> Tensor:
    """As `reference.enter_changes` describes them."""
    header = ints(len(stops), len(grants), len(records))
    return torch.cat((stops, grants.reshape(-1), records.reshape(-1), header)).int()


def busy_state() -> SlotState:
    """Slots 0 to 4 with tables and last tokens; slot 3 has ended; slot 2 stops on 7 and 9."""
    state = allocate_slot_state(NUM_SLOTS, MAX_BLOCKS, DEVICE)
    records = [record(0), record(1, num_stops=1, stops_at=2), record(2, num_stops=2), record(3), record(4)]
    reference.admit_slots(state, ints(records), ints(7, 9, 8))
    tables = torch.arange(1, 1 + 5 * MAX_BLOCKS, device=DEVICE).int().view(5, MAX_BLOCKS)
    state.block_tables[:5] = tables
    state.last_token[:5] = ints(20, 21, 22, 23, 24)
    state.has_ended[3] = 1
    return state


def mixed_rows() -> StepRows:
    """A decode row, an ended one, a prompt chunk that does not draw, one that does, its forked child, padding."""
    return StepRows(
        slots=ints(0, 3, 4, 2, 5, 6, 6),
        advances=ints(1, 1, 3, 2, 2, 0, 0),
        query_start_loc=ints(0, 1, 2, 5, 7, 7, 7, 7),
        logits_rows=ints(0, 1, 4, 6, 6, 0, 0),
        draws=ints(1, 1, 0, 1, 1, 0, 0),
        token_ids=ints(-1, -1, 5, 6, 7, 8, -1, 0, 0),
        token_rows=ints(0, 1, 2, 2, 2, 3, 3, -1, -1),
    )


def step_tensors(num_tokens: int, num_rows: int) -> StepTensors:
    """Poisoned: whatever is not written shows."""

    def full(dtype: torch.dtype, *size: int) -> Tensor:
        return torch.full(size, -77, dtype=dtype, device=DEVICE)

    long, int32, float32 = torch.int64, torch.int32, torch.float32
    return StepTensors(
        token_ids=full(long, num_tokens), positions=full(long, num_tokens), slot_mapping=full(long, num_tokens),
        seq_lens=full(int32, num_rows), block_tables=full(int32, num_rows, MAX_BLOCKS),
        temperature=full(float32, num_rows), top_k=full(int32, num_rows), top_p=full(float32, num_rows),
        min_p=full(float32, num_rows), seed=full(long, num_rows), sequence_index=full(int32, num_rows),
    )  # fmt: skip


@pytest.mark.parametrize("seed", [0, 5, -1, 2**62 + 12345, -(2**63)])
def test_admission_equals_reference(seed: int) -> None:
    expected, actual = busy_state(), busy_state()
    records = ints([record(5, seed=seed, num_stops=3, min_len=9), record(3, num_stops=0, stops_at=3)])
    stops = ints(4, 5, 6)
    reference.admit_slots(expected, records, stops)
    update.enter_changes(actual, changes(records, ints([]), stops))
    assert_same(actual, expected)
    assert int(actual.seed[5]) == seed
    assert float(actual.top_p[5]) == pytest.approx(0.9)
    assert int(actual.has_ended[3]) == 0


def test_grants_equal_reference() -> None:
    expected, actual = busy_state(), busy_state()
    grants = ints([[0, 4, 99], [5, 0, 50], [4, 3, 51]])
    reference.grant_blocks(expected, grants)
    update.enter_changes(actual, changes(ints([]), grants, ints([])))
    assert_same(actual, expected)
    assert int(actual.block_tables[4, 3]) == 51


@pytest.mark.parametrize("num_ignored", [0, 1, 40])
def test_changes_of_all_kinds_equal_reference(num_ignored: int) -> None:
    expected, actual, truth = busy_state(), busy_state(), busy_state()
    records = ints([record(slot, num_stops=2, stops_at=slot, seed=slot) for slot in range(NUM_SLOTS)])
    grants = ints(
        [[slot, index, 60 + slot * index] for slot in range(NUM_SLOTS) for index in range(MAX_BLOCKS)]
    )
    stops = ints(*range(10, 11 + NUM_SLOTS))
    told = torch.cat((torch.full((num_ignored,), 9, device=DEVICE).int(), changes(records, grants, stops)))
    reference.admit_slots(truth, records, stops)
    reference.grant_blocks(truth, grants)
    reference.enter_changes(expected, told)
    update.enter_changes(actual, told)
    assert_same(expected, truth)
    assert_same(actual, truth)


def test_more_changes_than_there_are_programs_are_all_entered() -> None:
    num_slots, max_blocks = 70, 130
    expected, actual = (allocate_slot_state(num_slots, max_blocks, DEVICE) for _ in range(2))
    records = ints([record(slot, seed=slot) for slot in range(num_slots)])
    grants = ints(
        [[slot, index, 1 + slot + index] for slot in range(num_slots) for index in range(max_blocks)]
    )
    told = changes(records, grants, ints([]))
    reference.enter_changes(expected, told)
    update.enter_changes(actual, told)
    assert_same(actual, expected)


def test_no_changes_change_nothing() -> None:
    actual = busy_state()
    update.enter_changes(actual, torch.zeros(8, dtype=torch.int32, device=DEVICE))
    reference.enter_changes(actual, torch.zeros(8, dtype=torch.int32, device=DEVICE))
    assert_same(actual, busy_state())


def test_forks_equal_reference() -> None:
    expected, actual = busy_state(), busy_state()
    forks = ints([[2, 5, 7]])
    reference.fork_slots(expected, forks)
    update.fork_slots(actual, forks)
    assert_same(actual, expected)
    assert int(actual.sequence_index[5]) == 7
    assert actual.block_tables[5].tolist() == actual.block_tables[2].tolist()


def test_prepared_step_equals_reference() -> None:
    state, rows = busy_state(), mixed_rows()
    reference.fork_slots(state, ints([[2, 5, 1]]))
    expected, actual = step_tensors(9, 7), step_tensors(9, 7)
    reference.prepare_step(state, rows, BLOCK_SIZE, expected)
    step.prepare_step(state, rows, BLOCK_SIZE, actual)
    for name in (
        "token_ids",
        "positions",
        "slot_mapping",
        "seq_lens",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    assert torch.equal(actual.seed, expected.seed)
    assert torch.equal(actual.sequence_index, expected.sequence_index)
    for row, seq_len in enumerate(expected.seq_lens.tolist()):
        num_blocks = min(MAX_BLOCKS, -(-seq_len // BLOCK_SIZE))
        assert torch.equal(actual.block_tables[row, :num_blocks], expected.block_tables[row, :num_blocks])
    assert actual.token_ids.tolist() == [20, 23, 5, 6, 7, 8, 22, 0, 0]
    assert actual.positions.tolist() == [3, 6, 7, 8, 9, 5, 6, 0, 0]
    assert actual.slot_mapping.tolist()[1] == 6 % BLOCK_SIZE, "an ended slot writes to the scratch block"
    assert actual.seq_lens.tolist()[3:5] == [7, 7], "a child draws at its parent's position"


def test_advanced_slots_equal_reference() -> None:
    rows = mixed_rows()
    tokens = torch.tensor([30, 31, 32, 9, 10, 0, 0], device=DEVICE)
    states, answers = [], []
    for implementation in (reference, step):
        state = busy_state()
        reference.fork_slots(state, ints([[2, 5, 1]]))
        drawn = ints(-9, -9, -9, -9, -9, -9, -9)
        implementation.advance_slots(state, rows, tokens, drawn)
        states.append(state)
        answers.append(drawn.tolist())
    assert answers[0] == answers[1] == [30, -1, -1, 9, 10, -1, -1]
    assert_same(states[1], states[0])
    assert states[1].has_ended.tolist() == [0, 0, 1, 1, 0, 0, 1], "9 stops slot 2, and not its child's 10"
    assert states[1].num_computed.tolist()[:6] == [4, 4, 7, 6, 10, 7]
    assert states[1].last_token.tolist()[4] == 24, "a chunk in the middle of a prompt draws nothing"


def test_a_slot_that_can_draw_nothing_ends_and_keeps_its_last_token() -> None:
    states, answers = [], []
    for implementation in (reference, step):
        state, drawn = busy_state(), ints(*[-9] * 7)
        tokens = torch.tensor([NO_TOKEN_LEFT] * 4 + [10, 0, 0], device=DEVICE)
        implementation.advance_slots(state, mixed_rows(), tokens, drawn)
        states.append(state)
        answers.append(drawn.tolist())
    assert answers[0] == answers[1] == [NO_TOKEN_LEFT, -1, -1, NO_TOKEN_LEFT, -1, -1, -1]
    assert_same(states[1], states[0])
    assert states[1].has_ended.tolist()[:5] == [1, 0, 1, 1, 0], "slot 4 did not draw"
    assert states[1].last_token.tolist()[:5] == [20, 21, 22, 23, 24]


@pytest.mark.parametrize("seq_len", [7, 8])
def test_early_stops_are_masked_as_in_the_reference(seq_len: int) -> None:
    state, rows = busy_state(), mixed_rows()
    state.min_len[2] = 8
    seq_lens = torch.full((7,), seq_len, dtype=torch.int32, device=DEVICE)
    logits = torch.randn(7, VOCAB, device=DEVICE)
    expected = reference.mask_early_stops(state, rows, seq_lens, logits.clone()).logits
    masked = step.mask_early_stops(state, rows, seq_lens, logits.clone())
    actual = masked.logits.clone()
    tokens, drawn = torch.zeros(7, dtype=torch.int64, device=DEVICE), ints(*[-9] * 7)
    step.advance_slots(state, rows, tokens, drawn, masked)
    assert torch.equal(masked.logits, logits), "what was masked is as it was"
    assert torch.equal(actual, expected)
    assert (actual == float("-inf")).sum() == (2 if seq_len < 8 else 0)
