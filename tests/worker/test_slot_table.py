"""What the slot table refuses, and what a step looks like to a forward pass."""

from dataclasses import replace
from typing import Any

import pytest
from quire_worker.slot_table import PlanError, SlotTable

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


def _step(table: SlotTable, plan: StepPlan) -> None:
    table.update(plan)
    table.advance(plan)


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
    table.update(plan)
    advance = table.advance(plan)
    assert advance.token_ids.tolist() == [1, 2]
    assert advance.slot_mapping.tolist() == [20, 21]


def test_chunk_draws_only_at_the_end_of_the_prompt() -> None:
    table = _table()
    first = table.advance(_plan(**_schedule((0, 3))))
    assert first.positions.tolist() == [0, 1, 2]
    assert first.slot_mapping.tolist() == [4, 5, 6]
    assert len(first.draw_slots) == 0
    second = table.advance(_plan(**_schedule((0, 2))))
    assert second.slot_mapping.tolist() == [7, 8]
    assert second.seq_lens.tolist() == [5]
    assert second.draw_slots.tolist() == [0]
    assert second.draw_rows.tolist() == [1]


def test_ended_slot_writes_to_the_scratch_block_and_draws_nothing() -> None:
    table = _table()
    advance = table.advance(_plan(**_schedule((0, 5))))
    table.enter_draws(advance.draw_slots, [3])  # a stop token
    spare = table.advance(_plan(**_schedule((0, 1))))
    assert all(place < 4 for place in spare.slot_mapping.tolist())
    assert len(spare.draw_slots) == 0


def test_max_len_ends_a_slot() -> None:
    table = _table()
    table.update(_plan(releases=[0], **_admit(slot=0, max_len=6), grants=[0, 0, 1, 0, 0, 2]))
    advance = table.advance(_plan(**_schedule((0, 5))))
    table.enter_draws(advance.draw_slots, [4])
    assert len(table.advance(_plan(**_schedule((0, 1)))).draw_slots) == 0


def test_child_draws_from_its_parents_logits_with_its_own_index() -> None:
    table = _table()
    plan = _plan(**_schedule((0, 5)), forks=[0, 2, 1, 0, 3, 2])
    table.update(plan)
    advance = table.advance(plan)
    assert advance.draw_slots.tolist() == [0, 2, 3]
    assert advance.logits_index.tolist() == [0, 0, 0]
    assert advance.result_rows.tolist() == [0, 1, 2]
    assert table.sequence_index[[0, 2, 3]].tolist() == [0, 1, 2]
    assert table.block_tables[2].tolist() == table.block_tables[0].tolist()
    table.enter_draws(advance.draw_slots, [10, 11, 12])
    copied = table.update(_plan(copies=[2, 0, 1, 2, 6]))
    assert copied == [(2, 6)]
    assert table.advance(_plan(**_schedule((2, 1)))).slot_mapping.tolist() == [6 * 4 + 1]
