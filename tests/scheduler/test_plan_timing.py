"""When a plan is put off: only behind a lone step that is known to take long, and never past its end."""

import asyncio
import time
from statistics import median

import pytest
from quire_scheduler.plan_timing import PlanTiming

from tests.doubles.echo_worker import EchoWorker
from tests.scheduler.stack import running_stack


def _steady(num_tokens: int, step_s: float, num_steps: int = 10) -> tuple[PlanTiming, float]:
    """Steps of one size, two in flight; the second of the two is still to be sent."""
    timing, now = PlanTiming(), 100.0
    timing.sent(num_tokens, now)
    for _ in range(num_steps):
        timing.sent(num_tokens, now)
        now += step_s
        timing.answered(now)
    return timing, now


def test_a_plan_is_cut_some_milliseconds_before_the_step_in_flight_ends() -> None:
    timing, now = _steady(20, 0.010)
    assert now + 0.005 < timing.due_at(20, 0) < now + 0.007


def test_many_rows_put_nothing_off() -> None:
    timing, now = _steady(1000, 0.030)
    assert timing.due_at(40, 0) > now
    assert timing.due_at(1000, 0) == 0.0


def test_prompts_that_wait_are_given_more_time() -> None:
    timing, _ = _steady(20, 0.030)
    assert timing.due_at(20, 4000) == pytest.approx(timing.due_at(20, 0) - 0.004)


def test_what_was_learned_of_longer_steps_does_not_outlive_a_plan_that_came_too_late() -> None:
    """Long contexts taught 20 ms a step; after an idle moment short ones of as many tokens take 6."""
    timing, now = _steady(1, 0.020)
    timing.answered(now + 0.020)
    now += 5.0
    num_lone = 0
    timing.sent(1, now)
    began = now
    for _ in range(100):
        ends = began + 0.006
        due = max(now, timing.due_at(1, 0))
        if due < ends:
            timing.sent(1, due)
            timing.answered(ends)
            began = now = ends
        else:
            num_lone += 1
            timing.answered(ends)
            timing.sent(1, ends)
            began = now = ends
    assert num_lone <= 2


def test_a_host_that_is_late_is_given_more_time_until_it_is_not() -> None:
    timing, now = _steady(20, 0.010)
    before = timing.due_at(20, 0) - now
    for _ in range(20):
        timing.sent(20, now + 0.0095)  # half a millisecond before the step ends
        now += 0.010
        timing.answered(now)
    assert timing.due_at(20, 0) <= now  # nothing is put off any more
    for _ in range(2000):
        timing.sent(20, now)
        now += 0.010
        timing.answered(now)
    assert timing.due_at(20, 0) - now == pytest.approx(before, abs=1e-4)


def test_short_steps_put_nothing_off() -> None:
    timing, now = _steady(20, 0.002)
    assert timing.due_at(20, 0) <= now


def test_nothing_is_put_off_behind_a_step_smaller_than_any_that_was_timed() -> None:
    timing, now = _steady(8192, 0.180)
    timing.sent(20, now)
    timing.answered(now + 0.180)
    assert timing.due_at(20, 0) == 0.0


def test_a_step_that_waited_for_its_plan_is_not_taken_for_a_long_one() -> None:
    timing, now = PlanTiming(), 5.0
    for _ in range(5):  # the device is idle for a second before each
        timing.sent(20, now)
        now += 1.0
        timing.answered(now)
    timing.sent(20, now)
    assert timing.due_at(20, 0) == 0.0


def test_an_empty_and_a_full_pipeline_put_nothing_off() -> None:
    timing, now = _steady(20, 0.010)
    timing.sent(20, now)
    assert timing.due_at(20, 0) == 0.0
    timing.forget()
    assert timing.due_at(20, 0) == 0.0


async def test_who_comes_while_a_step_runs_is_in_the_next_one() -> None:
    """In the middle of a step its answer is one and a half steps away; behind a plan cut at once it would be two and a half."""
    period_s = 0.04
    seconds: list[float] = []
    async with running_stack() as stack:
        worker = EchoWorker(stack.grpc, steps_per_s=1 / period_s)
        stack.start(worker)
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        long = asyncio.create_task(stack.generate([1, 2, 3], 200))
        await stack.stats_when(lambda stats: stats.num_generated_tokens > 20)
        for _ in range(9):
            await worker.next_plan()  # one comes at the begin of a step, or just before
            await asyncio.sleep(period_s / 2)
            start = time.monotonic()
            await stack.generate([5, 6, 7], 1)
            seconds.append(time.monotonic() - start)
        long.cancel()
    assert median(seconds) < 2 * period_s, seconds
