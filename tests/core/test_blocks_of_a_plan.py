"""A block is never granted to another sequence by the plan that fills it: the worker reads the cache while rows write it."""

import pytest
from quire_scheduler.core import CoreLimits

from quire.wire.plan import StepPlan
from tests.core.driver import GROUP, CoreDriver, capacity_of

BLOCK_SIZE = 4


def _granted(plan: StepPlan, slot: int) -> set[int]:
    return {block for to, block in zip(plan.grants[::3], plan.grants[2::3], strict=True) if to == slot}


def _planned(driver: CoreDriver) -> StepPlan:
    plan = driver.plan()
    assert plan is not None
    return plan


def _admitted(driver: CoreDriver) -> tuple[StepPlan, int]:
    """A plan that admits one sequence, and how much of its prompt is said to be cached."""
    plan = _planned(driver)
    (admission,) = plan.admissions
    return plan, admission.num_computed_tokens


@pytest.mark.parametrize("num_full_blocks", [1, 2])
def test_a_block_that_decoding_fills_is_found_by_later_plans_alone(num_full_blocks: int) -> None:
    driver = CoreDriver(capacity_of(block_size=BLOCK_SIZE), CoreLimits(pipeline_depth=1))
    prompt = list(range(num_full_blocks * BLOCK_SIZE - 1))
    driver.add("first", prompt, 8)
    first = _planned(driver)
    driver.answer()
    text = [*prompt, *driver.tokens["first", 0]]
    assert len(text) == num_full_blocks * BLOCK_SIZE

    driver.add("second", [*text, 1], 8)
    plan, num_cached = _admitted(driver)
    assert len(plan.scheduled_slots) == 2, (
        "the first one writes the last place of its block as the second enters"
    )
    assert num_cached == (num_full_blocks - 1) * BLOCK_SIZE
    filled = list(first.grants[2::3])[-1]
    assert filled not in _granted(plan, plan.admissions[0].slot)

    driver.answer()
    driver.add("third", [*text, 1], 8)
    _plan, num_cached = _admitted(driver)
    assert num_cached == num_full_blocks * BLOCK_SIZE


@pytest.mark.parametrize("num_rows_before", [0, 2])
def test_blocks_that_a_prompt_fills_are_found_by_later_plans_alone(num_rows_before: int) -> None:
    driver = CoreDriver(capacity_of(block_size=BLOCK_SIZE), CoreLimits(pipeline_depth=2))
    for number in range(num_rows_before):
        driver.add(f"before {number}", [500 + number], 8)
    if num_rows_before:
        driver.plan()
    prompt = list(range(3 * BLOCK_SIZE + 1))
    driver.add("first", prompt, 8)
    driver.add("second", prompt, 8)
    first, second = _planned(driver).admissions
    assert (first.num_computed_tokens, second.num_computed_tokens) == (0, 0)

    driver.answer()
    driver.add("third", prompt, 8)
    _plan, num_cached = _admitted(driver)
    assert num_cached == 3 * BLOCK_SIZE


def test_blocks_that_a_later_chunk_fills_are_found_by_later_plans_alone() -> None:
    capacity = capacity_of(block_size=BLOCK_SIZE, max_num_seqs=8, max_num_batched_tokens=4 * BLOCK_SIZE)
    driver = CoreDriver(capacity, CoreLimits(pipeline_depth=2))
    prompt = list(range(6 * BLOCK_SIZE + 1))
    driver.add("first", prompt, 8)
    assert _planned(driver).scheduled_tokens == [4 * BLOCK_SIZE]
    driver.add("second", prompt, 8)
    plan, num_cached = _admitted(driver)
    assert plan.scheduled_tokens[0] == 2 * BLOCK_SIZE + 1
    assert num_cached == 4 * BLOCK_SIZE


def test_a_plan_finds_what_the_plan_before_it_fills_though_nobody_has_settled() -> None:
    driver = CoreDriver(capacity_of(block_size=BLOCK_SIZE), CoreLimits(pipeline_depth=2))
    prompt = list(range(3 * BLOCK_SIZE + 1))
    driver.add("first", prompt, 5)
    _planned(driver)
    driver.add("second", prompt, 5)
    _plan, num_cached = _admitted(driver)
    assert num_cached == 3 * BLOCK_SIZE


def test_names_of_a_failed_step_are_withdrawn_from_blocks_whose_new_holder_is_not_counted() -> None:
    driver = CoreDriver(capacity_of(block_size=BLOCK_SIZE, num_blocks=16), CoreLimits(pipeline_depth=2))
    prompt = list(range(3 * BLOCK_SIZE + 1))
    driver.add("first", prompt, 5)
    _planned(driver)
    driver.abort("first")
    driver.core.settle()
    driver.add("second", prompt, 5)
    _plan, num_cached = _admitted(driver)
    assert num_cached == 3 * BLOCK_SIZE
    driver.core.fail(GROUP, driver.sent[0].step_id)
    driver.sent.clear()
    stats = driver.core.stats()
    assert (stats.num_free_blocks, stats.num_cached_blocks) == (16, 0)
    driver.run()
    assert len(driver.tokens["second", 0]) == 5


def test_neither_a_plan_nor_an_answer_waits_until_blocks_are_named_and_counted() -> None:
    driver = CoreDriver(capacity_of(block_size=BLOCK_SIZE), CoreLimits(pipeline_depth=2))
    driver.add("first", list(range(3 * BLOCK_SIZE + 1)), 1)
    plan = driver.core.schedule(GROUP)
    assert plan is not None
    driver.sent.append(plan)
    blocks = sorted(_granted(plan, 0))
    pool = driver.core._groups[GROUP].kv.pool
    assert not any(pool._names.names[block] or pool._num_holders[block] for block in blocks)
    driver.core.settle()
    assert [pool._num_holders[block] for block in blocks] == [1] * 4
    assert [pool._names.names[block] > 0 for block in blocks] == [True] * 3 + [False]

    driver.answer()
    assert [pool._num_holders[block] for block in blocks] == [1] * 4
    driver.core.settle()
    assert [pool._num_holders[block] for block in blocks] == [0] * 4
