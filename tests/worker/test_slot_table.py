"""What the slot table refuses, and what a step looks like to a forward pass."""

from array import array
from dataclasses import replace
from typing import Any

import pytest
from quire_worker.slot_table import Grants, PlanError, SlotTable
from quire_worker.step_columns import StepColumns

from quire.wire.plan import NO_LOGPROBS, SlotAdmission, StepPlan

_ADMISSION = SlotAdmission(
    slot=0, token_ids=[5, 6, 7, 8, 9], num_computed_tokens=0, prompt_len=5, sequence_index=0, temperature=0.0,
    top_k=0, top_p=1.0, min_p=0.0, seed=1, num_logprobs=NO_LOGPROBS, min_len=0, max_len=12, stop_token_ids=(3,),
)  # fmt: skip


def _table() -> SlotTable:
    """4 slots, contexts of 16, 10 blocks of 4, 50 tokens; slot 0 holds 5 prompt tokens in blocks 1 and 2."""
    table = SlotTable(max_num_seqs=4, max_model_len=16, num_blocks=10, block_size=4, vocab_size=50)
    table.update(_plan(admissions=[_ADMISSION], grants=[0, 0, 1, 0, 0, 2]))
    return table


def _plan(**parts: Any) -> StepPlan:
    return StepPlan(group_id=1, epoch=1, step_id=0, **parts)


def _step(table: SlotTable, plan: StepPlan) -> StepColumns:
    return table.advance(plan, table.update(plan))


def _admit(**changes: Any) -> dict[str, Any]:
    return {"admissions": [replace(_ADMISSION, **({"slot": 1} | changes))]}


def _schedule(*pairs: tuple[int, int]) -> dict[str, Any]:
    return {
        "scheduled_slots": [slot for slot, _ in pairs],
        "scheduled_tokens": [tokens for _, tokens in pairs],
    }


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"releases": [4]}, "slot 4: this worker has 4"),
        ({"releases": [-1]}, "slot -1: this worker has 4"),
        (_admit(slot=0), "slot 0, which holds a sequence"),
        (_admit(slot=9), "slot 9: this worker has 4"),
        (_admit(token_ids=[]), "admission of 0 tokens"),
        (_admit(max_len=5), "admission of 5 tokens with max_len=5"),
        (_admit(max_len=17), "max_len=17: the worker's max_model_len is 16"),
        (_admit(num_computed_tokens=5), "5 of 5 tokens computed"),
        (_admit(num_computed_tokens=-1), "-1 of 5 tokens computed"),
        (_admit(token_ids=[1, 50]), "the vocabulary size is 50"),
        (_admit(token_ids=[-1, 2]), "admission of tokens -1 to 2"),
        ({"grants": [1, 0, 3]}, "slot 1 is empty"),
        ({"grants": [0, 1, 3]}, "KV group 1"),
        ({"grants": [0, 0, 0]}, "block 0: this worker has 1 to 10"),
        ({"grants": [0, 0, 11]}, "block 11: this worker has 1 to 10"),
        ({"grants": [0, 0, 3] * 3}, "its table of 4 blocks is full"),
        ({"choices": [0, 0, 7]}, "its parent 0 waits for none"),
        ({"choices": [2, 1, 7]}, "slot 2 is empty"),
        ({"copies": [0, 0, 1, 1, 3]}, "does not hold block 1 at 1"),
        ({"copies": [0, 0, 9, 1, 3]}, "does not hold block 1 at 9"),
        ({"copies": [0, 0, -1, 0, 3]}, "does not hold block 0 at -1"),
        ({"copies": [0, 0, 1, 2, 11]}, "block 11: this worker has 1 to 10"),
        ({"copies": [0, 2, 1, 2, 3]}, "KV group 2"),
        ({"copies": [2, 0, 0, 1, 3]}, "slot 2 is empty"),
        (_schedule(), "schedules nothing"),
        (_schedule((1, 1)), "schedules an empty slot"),
        (_schedule((-1, 1)), "schedules an empty slot"),
        (_schedule((4, 1)), "schedules an empty slot"),
        (_schedule((0, 1), (0, 1)), "a slot twice or by no token"),
        (_schedule((0, 0)), "a slot twice or by no token"),
        (_schedule((0, 6)), "past the tokens or blocks it has"),
        (_admit(slot=1) | _schedule((1, 1)), "slot 1 is scheduled past the tokens or blocks it has"),
        (_schedule((0, 3)) | {"forks": [0, 1, 1]}, "the parent does not draw"),
        (_schedule((0, 5)) | {"forks": [0, 0, 1]}, "the child is in use"),
        (_schedule((0, 5)) | {"forks": [2, 1, 1]}, "the parent is empty"),
        (_schedule((0, 5)) | {"forks": [0, 7, 1]}, "slot 7: this worker has 4"),
        ({"releases": [0]} | _schedule((0, 5)), "schedules an empty slot"),
    ],
)
def test_contradicting_plan_is_refused(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        _step(_table(), _plan(**parts))


def test_releasing_an_empty_slot_is_no_error() -> None:
    table = _table()
    table.update(_plan(releases=[3, 0, 0]))
    assert table.num_used_slots == 0


def test_slot_can_be_released_and_admitted_in_one_plan() -> None:
    table = _table()
    plan = _plan(releases=[0], **_admit(slot=0, token_ids=[1, 2]), grants=[0, 0, 5], **_schedule((0, 2)))
    changes = table.update(plan)
    assert changes.grants == Grants(array("i", (0, 0, 5))), "the new table begins anew"
    assert table.advance(plan, changes).token_ids.tolist() == [1, 2]


def test_chunk_draws_only_at_the_end_of_the_prompt() -> None:
    table = _table()
    first = _step(table, _plan(**_schedule((0, 3))))
    assert first.token_ids.tolist() == [5, 6, 7]
    assert first.draws.tolist() == [False]
    second = _step(table, _plan(**_schedule((0, 2))))
    assert second.token_ids.tolist() == [8, 9]
    assert second.draws.tolist() == [True]
    assert second.logits_rows.tolist() == [1]


def _beams() -> SlotTable:
    """Slot 1 is a beam that has brought the candidates of its prompt of 5, in blocks 3 and 4."""
    table = _table()
    plan = _plan(**_admit(num_candidates=4), grants=[1, 0, 3, 1, 0, 4], **_schedule((1, 5)))
    columns = _step(table, plan)
    assert (columns.draws.tolist(), columns.num_candidates.tolist()) == ([False], [4])
    return table


def test_beam_waits_for_its_choice_and_hands_its_table_on() -> None:
    table = _beams()
    with pytest.raises(PlanError, match="slot 1 is scheduled past the tokens"):
        _step(table, _plan(**_schedule((1, 1))))
    plan = _plan(choices=[1, 1, 7, 1, 2, 8], copies=[2, 0, 1, 4, 5], **_schedule((1, 1), (2, 1)))
    columns = _step(table, plan)
    assert columns.token_ids.tolist() == [-1, -1]
    assert columns.num_candidates.tolist() == [4, 4]
    with pytest.raises(PlanError, match="does not hold block 4 at 1"):
        table.update(_plan(copies=[2, 0, 1, 4, 6]))


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([1, 1, 50], "choice of token 50: the vocabulary size is 50"),
        ([1, 9, 7], "slot 9: this worker has 4"),
        ([1, 2, 7, 2, 3, 7], "which is another's parent"),
    ],
)
def test_impossible_choice_is_refused(choices: list[int], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        _beams().update(_plan(choices=choices))


def test_later_tokens_stay_on_the_device() -> None:
    table = _table()
    _step(table, _plan(**_schedule((0, 5))))
    third = _step(table, _plan(**_schedule((0, 1))))
    assert third.token_ids.tolist() == [-1]
    assert third.is_decode


def test_rows_of_one_step_lie_one_after_another() -> None:
    table = _table()
    _step(table, _plan(**_schedule((0, 5))))
    plan = _plan(**_admit(slot=3, token_ids=[1, 2, 3]), grants=[3, 0, 6], **_schedule((0, 1), (3, 2)))
    columns = _step(table, plan)
    assert columns.query_start_loc.tolist() == [0, 1, 3]
    assert columns.token_ids.tolist() == [-1, 1, 2]
    assert columns.token_rows.tolist() == [0, 1, 1]
    assert columns.draws.tolist() == [True, False]
    assert not columns.is_decode


def test_decoding_rows_lie_longest_first_and_name_their_row_of_the_plan() -> None:
    table = _table()
    plan = _plan(**_admit(slot=3, token_ids=[1] * 7), grants=[3, 0, 6, 3, 0, 7], **_schedule((0, 5), (3, 7)))
    _step(table, plan)
    columns = _step(table, _plan(**_schedule((0, 1), (3, 1))))
    assert columns.slots.tolist() == [3, 0]
    assert columns.plan_rows.tolist() == [1, 0]


def test_child_draws_from_its_parents_logits_with_its_own_index() -> None:
    table = _table()
    plan = _plan(**_schedule((0, 5)), forks=[0, 2, 1, 0, 3, 2])
    changes = table.update(plan)
    assert changes.forks == [(0, 2, 1), (0, 3, 2)]
    columns = table.advance(plan, changes)
    assert columns.slots.tolist() == [0, 2, 3]
    assert columns.advances.tolist() == [5, 5, 5]
    assert columns.logits_rows.tolist() == [4, 4, 4]
    assert columns.query_start_loc.tolist() == [0, 5, 5, 5]
    assert columns.draws.all()


def test_copied_block_replaces_the_shared_one() -> None:
    table = _table()
    _step(table, _plan(**_schedule((0, 5)), forks=[0, 2, 1]))
    plan = _plan(copies=[2, 0, 1, 2, 6], **_schedule((2, 1)))
    changes = table.update(plan)
    assert changes.copies == [(2, 6)]
    assert changes.grants == Grants(array("i", (2, 1, 6)))
    assert table.advance(plan, changes).token_ids.tolist() == [-1]
    with pytest.raises(PlanError, match="does not hold block 2 at 1"):
        table.update(_plan(copies=[2, 0, 1, 2, 7]))
