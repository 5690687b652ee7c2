"""Who waits for whom: short behind long, steady streams while prompts arrive, and what an abort gives back."""

import pytest
from quire_scheduler.core import BeamParams, CoreLimits

from tests.core.driver import GROUP, CoreDriver, capacity_of

PREFILL_CAPS = [None, 32]


def _prompt(length: int, salt: int = 0) -> list[int]:
    return [(salt + 7 * at) % 1000 for at in range(length)]


@pytest.mark.parametrize("prefill_cap", PREFILL_CAPS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_short_request_behind_a_long_one_finishes_first(depth: int, prefill_cap: int | None) -> None:
    limits = CoreLimits(pipeline_depth=depth, max_num_prefill_tokens_while_decoding=prefill_cap)
    driver = CoreDriver(capacity_of(max_num_batched_tokens=64), limits)
    driver.add("long", _prompt(4000), 4)
    driver.step()
    driver.add("short", _prompt(20, salt=3), 4)
    for _ in range(12):
        driver.step()
    assert ("short", 0) in driver.finished
    assert ("long", 0) not in driver.tokens, "the long prompt is not computed yet"
    driver.run()
    assert ("long", 0) in driver.finished


@pytest.mark.parametrize("prefill_cap", PREFILL_CAPS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_of_64_streams_gets_a_token_in_every_8_steps_while_long_prompts_arrive(
    depth: int, prefill_cap: int | None
) -> None:
    limits = CoreLimits(pipeline_depth=depth, max_num_prefill_tokens_while_decoding=prefill_cap)
    driver = CoreDriver(capacity_of(max_num_seqs=72, max_num_batched_tokens=128), limits)
    streams = [f"stream {number}" for number in range(64)]
    for number, name in enumerate(streams):
        driver.add(name, _prompt(5 + number % 9, salt=number), 200)
    while len(driver.tokens) < len(streams):
        driver.step()
    num_late = 0
    for step in range(160):
        if step % 4 == 0:
            driver.add(f"long {step}", _prompt(700, salt=step), 4)
        if step % 8 == 0:
            before = {name: len(driver.tokens[name, 0]) for name in streams}
        driver.step()
        if step % 8 == 7:
            num_late += sum(len(driver.tokens[name, 0]) == before[name] for name in streams)
    assert num_late == 0
    assert any(name.startswith("long") for name, _ in driver.tokens), "long prompts were computed meanwhile"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_prompts_take_what_sequences_leave_whose_last_token_is_foreseen(depth: int) -> None:
    driver = CoreDriver(capacity_of(max_num_batched_tokens=512), CoreLimits(pipeline_depth=depth))
    for number in range(16):
        driver.add(f"prompt {number}", _prompt(128, salt=number), 1)
    num_steps, chunks = 0, list[int]()
    while driver.core.has_work(GROUP):
        while (plan := driver.plan()) is not None:
            num_steps += 1
            chunks += plan.scheduled_tokens
        driver.answer()
    assert num_steps == 4
    assert chunks == [128] * 16, "a prompt was cut"


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "num_steps_before", [0, 1, 3, 20], ids=["waiting", "in prefill", "further in prefill", "decoding"]
)
def test_abort_frees_its_blocks_within_two_steps(depth: int, num_steps_before: int) -> None:
    driver = CoreDriver(capacity_of(max_num_batched_tokens=80), CoreLimits(pipeline_depth=depth))
    driver.add("other", _prompt(30), 100)
    for _ in range(3):
        driver.step()
    driver.add("aborted", _prompt(1000, salt=5), 50)
    for _ in range(num_steps_before):
        driver.step()
    used_before = driver.core.stats().num_used_blocks
    driver.abort("aborted")
    for _ in range(2):
        driver.step()
    stats = driver.core.stats()
    assert stats.num_used_blocks <= -(-(30 + 100) // 16)
    assert used_before > stats.num_used_blocks or num_steps_before == 0
    assert stats.num_free_blocks + stats.num_used_blocks + stats.num_cached_blocks == stats.num_total_blocks
    driver.run()
    assert len(driver.tokens["other", 0]) == 100
    assert driver.core.stats().num_used_blocks == 0


def test_a_beam_search_that_does_not_fit_leaves_its_step_to_those_that_wait() -> None:
    """Its beams were to take all tokens of the step in which they fail, and no answer is awaited that would bring another."""
    capacity = capacity_of(
        block_size=1, num_blocks=28, max_num_seqs=4, max_num_batched_tokens=4, max_model_len=28
    )
    driver = CoreDriver(capacity)
    beams = BeamParams(beam_width=4, length_penalty=1.0, early_stopping="never")
    driver.add("beams", list(range(20)), 8, n=4, beam_params=beams)
    driver.add("waits", [1, 2], 1)
    while driver.plan() is not None or driver.sent:
        if driver.sent:
            driver.answer()
    driver.collect()
    assert "beams" in driver.failed
    assert ("waits", 0) in driver.finished
