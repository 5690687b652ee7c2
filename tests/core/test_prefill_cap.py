"""The cap on prompt tokens while others decode: short steps under a trickle of arrivals, large chunks under load."""

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from quire_scheduler.core import BeamParams, CoreLimits

from quire.wire.plan import StepPlan
from tests.core.driver import GROUP, CoreDriver, capacity_of

CAP = 256
BUDGET = 8192

LINEARS_MS = [(1, 3.76), (64, 4.01), (128, 4.36), (256, 5.80), (512, 9.74)]
"""All linears of Llama-3.1-8B by tokens in the step, measured on one NVIDIA H200."""


def _driver(cap: int | None, *, max_num_seqs: int = 256, depth: int = 2) -> CoreDriver:
    limits = CoreLimits(
        max_num_prefill_tokens_while_decoding=cap, pipeline_depth=depth, enable_prefix_caching=False
    )
    capacity = capacity_of(
        num_blocks=60_000, max_num_seqs=max_num_seqs, max_num_batched_tokens=BUDGET, max_model_len=8192
    )
    return CoreDriver(capacity, limits)


def _prompt(length: int) -> list[int]:
    return [at % 1000 for at in range(length)]


def test_prompt_comes_in_capped_chunks_while_another_decodes() -> None:
    driver = _driver(CAP, depth=1)
    driver.add("stream", _prompt(4), 50)
    driver.step()
    driver.add("prompt", _prompt(1000), 1)
    chunks: list[int] = []
    while ("prompt", 0) not in driver.finished:
        plan = driver.plan()
        assert plan is not None
        chunks.append(plan.num_tokens - 1)
        driver.answer()
    assert chunks == [256, 256, 256, 232]


def test_nothing_is_capped_while_nothing_decodes() -> None:
    driver = _driver(CAP)
    for number in range(8):
        driver.add(f"prompt {number}", _prompt(2048), 1)
    first, second = driver.plan(), driver.plan()
    assert first is not None
    assert first.num_tokens == BUDGET
    assert second is not None
    assert second.num_tokens == BUDGET, "a sequence whose last token is in flight decodes no more"


@pytest.mark.parametrize(("cap", "num_prompts", "num_tokens"), [(CAP, 1, CAP + 4), (None, 9, BUDGET)])
def test_beams_decode_though_none_of_them_has_a_foreseen_end(
    cap: int | None, num_prompts: int, num_tokens: int
) -> None:
    driver = _driver(cap, depth=1)
    driver.add("beams", _prompt(4), 50, n=4, beam_params=BeamParams(beam_width=4))
    driver.step()
    for number in range(num_prompts):
        driver.add(f"prompt {number}", _prompt(1000), 1)
    plan = driver.plan()
    assert plan is not None
    assert sorted(plan.scheduled_tokens)[:4] == [1] * 4
    assert plan.num_tokens == num_tokens


def test_backlog_lifts_the_cap_so_that_it_is_worked_off_in_a_few_steps() -> None:
    driver = _driver(CAP, depth=1)
    driver.add("stream", _prompt(4), 200)
    driver.step()
    for number in range(20):
        driver.add(f"prompt {number}", _prompt(1000), 1)
    plan = driver.plan()
    assert plan is not None
    assert plan.num_tokens - 1 == 20_000 // 4
    driver.answer()
    num_steps = 1
    while len(driver.finished) < 20:
        driver.step()
        num_steps += 1
    assert num_steps <= 18


def test_poisson_arrivals_do_not_show_as_pauses_in_streams() -> None:
    """Twenty chat-like requests a second, on a device of which every step takes as long as it was measured to take."""
    draw = random.Random(2)
    arrivals = [(at, *_chat_lengths(draw)) for at in _poisson_times(draw, rate=20.0, num=300)]
    capped, free = _simulate(_driver(384), arrivals), _simulate(_driver(None), arrivals)
    assert _percentile(capped.between_tokens_s, 99) < 0.012 <= _percentile(free.between_tokens_s, 99)
    assert 2 * _percentile(capped.between_tokens_s, 99.9) < _percentile(free.between_tokens_s, 99.9)
    assert _percentile(capped.first_token_s, 99) < 0.050
    assert _percentile(capped.first_token_s, 50) < 0.018


def test_saturated_server_is_as_fast_with_the_cap() -> None:
    draw = random.Random(4)
    requests = [(0.0, *_chat_lengths(draw)) for _ in range(500)]
    took_s = {cap: _simulate(_driver(cap, max_num_seqs=500), requests).duration_s for cap in (384, None)}
    assert took_s[384] < 1.02 * took_s[None]


@dataclass
class _Timing:
    duration_s: float = 0.0
    first_token_s: list[float] = field(default_factory=list)
    between_tokens_s: list[float] = field(default_factory=list)


def _simulate(driver: CoreDriver, arrivals: list[tuple[float, int, int]]) -> _Timing:
    """Runs the requests under a simulated clock: a plan is cut when the step before it begins, or on an arrival."""
    timing = _Timing()
    last_s: dict[str, float] = {}
    now = 0.0
    ahead = deque(arrivals)
    while ahead or driver.core.has_work(GROUP) or driver.sent:
        while driver.plan() is not None:
            pass
        ends = now + _cost_s(driver.sent[0]) if driver.sent else ahead[0][0]
        while ahead and ahead[0][0] <= ends:
            arrived, num_in, num_out = ahead.popleft()
            name = str(len(ahead))
            last_s[name] = arrived
            driver.add(name, _prompt(num_in), num_out)
            while driver.plan() is not None:
                pass
        now = ends
        if driver.sent:
            events = driver.answer()
            for handle, first in zip(events.handles, events.first_token_indexes, strict=True):
                name = driver.names[handle]
                (timing.between_tokens_s if first else timing.first_token_s).append(now - last_s[name])
                last_s[name] = now
    timing.duration_s = now
    return timing


def _cost_s(plan: StepPlan) -> float:
    """Matrix products of an 8B model by tokens in the step, as docs and notes have measured them, and the rest of it."""
    num_tokens = plan.num_tokens
    linears_ms = 9.74 + 0.019 * (num_tokens - 512)
    for (low, low_ms), (high, high_ms) in pairwise(LINEARS_MS):
        if num_tokens <= high:
            linears_ms = low_ms + (high_ms - low_ms) * (num_tokens - low) / (high - low)
            break
    return 1e-3 * (linears_ms + 0.7 + 0.01 * len(plan.scheduled_slots))


def _poisson_times(draw: random.Random, *, rate: float, num: int) -> list[float]:
    times = [0.0]
    while len(times) < num:
        times.append(times[-1] + draw.expovariate(rate))
    return times


def _chat_lengths(draw: random.Random) -> tuple[int, int]:
    """Log-normal lengths with means near 220 in and 190 out."""
    num_in, num_out = 120 * draw.lognormvariate(0.0, 1.1), 127 * draw.lognormvariate(0.0, 0.9)
    return min(1024, max(4, round(num_in))), min(1024, max(4, round(num_out)))


def _percentile(values: list[float], percent: float) -> float:
    return sorted(values)[int(len(values) * percent / 100)]
