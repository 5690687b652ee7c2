"""Cost of one scheduler step by phase, beside its budget of 0.3 ms + 2 µs per running request.

    python benchmarks/scheduler_step.py

A steady decode step in the order in which the loop does it: decode the answer, apply it, schedule the next plan, encode
it, deliver the events as one serialized TokenFrame, and settle what was left until then. The answer itself is made
outside the measured time. Context lengths are spread over a block, as in service, so that one request in sixteen crosses
into a new block in each step. Long-lived objects are frozen first, as the scheduler process does once it is up.

Every measurement has a process of its own, and the context lengths take turns, so that neither the heap of an earlier
one nor a busy moment of the machine counts for one length alone. The first table has the medians over the rounds of
the phases, of the steps and of their 99th percentiles; the second what a hundred times the context adds, with its
spread over the rounds. CPython shares the integers below 257: while a context is shorter, its counters cost a little
less, which is why a middle length stands beside the short one.

A worker that has served for a while remembers the blocks of requests that ended, as many as it has room for, whatever
the length of those that run. The rows marked `after` are short contexts on such a worker: as many tokens have been
served and remembered before as the long contexts bring with them. What a long context adds to those is its length
alone; what these add to plain ones is a prefix cache with something in it.
"""

import gc
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from statistics import median
from time import perf_counter

from quire_scheduler.core import (
    CoreLimits,
    GroupCapacity,
    OwnerId,
    Request,
    Sampling,
    Scheduler,
    token_ids_of,
)
from quire_scheduler.owner import token_frame

from quire.wire.codec import decode_answer, encode_plan, encode_result
from quire.wire.column import Buffer
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

_PHASES = ("decode", "apply", "schedule", "encode", "deliver", "settle")
_NUM_STEPS = 400
_NUM_ROUNDS = 5
_BLOCK_SIZE = 16
_NUM_RUNNING = (1, 64, 256, 1024)
_SHORT, _LONG = 100, 10_000
_CELLS = ((_SHORT, 0), (_SHORT, _LONG), (1_000, 0), (_LONG, 0))
"""(context length, tokens of requests that ended before, for each that runs)."""

Cell = tuple[int, int]
Figures = list[float]
"""Milliseconds: the median of each phase, of whole steps, and their 99th percentile."""


def main() -> None:
    """Prints the tables."""
    phases = " ".join(f"{phase:>9}" for phase in _PHASES)
    print(
        f"{'running':>8} {'context':>9} {phases} {'ms/step':>9} {'p99 ms':>8} {'budget ms':>10} {'ratio':>6}"
    )
    rounds_of = {num_running: _rounds(num_running) for num_running in _NUM_RUNNING}
    for past_len, worker in ((0, "an empty worker"), (_LONG, "a worker that remembers as many tokens")):
        print(
            f"\nA step at a context of {_LONG} beside one of {_SHORT} on {worker}, {_NUM_ROUNDS} rounds in turn:"
        )
        print(f"{'running':>8} {'growth':>8}   {'lowest and highest of the rounds':<34} spread of each")
        for num_running, rounds in rounds_of.items():
            short, long = ([cells[cell][-2] for cells in rounds] for cell in ((_SHORT, past_len), (_LONG, 0)))
            _print_growth(num_running, short, long)


def _rounds(num_running: int) -> list[dict[Cell, Figures]]:
    """Measures every cell once a round; prints a row for each."""
    rounds = [{cell: _measured_apart(num_running, cell) for cell in _CELLS} for _ in range(_NUM_ROUNDS)]
    for cell in _CELLS:
        *phases, cost, p99 = (
            median(column) for column in zip(*(cells[cell] for cells in rounds), strict=True)
        )
        budget = 0.3 + 0.002 * num_running
        columns = " ".join(f"{phase:>9.3f}" for phase in phases)
        context_len, past_len = cell
        context = f"after {context_len}" if past_len else str(context_len)
        row = f"{num_running:>8} {context:>9} {columns} {cost:>9.3f} {p99:>8.3f}"
        print(f"{row} {budget:>10.3f} {cost / budget:>6.2f}", flush=True)
    return rounds


def _print_growth(num_running: int, short: list[float], long: list[float]) -> None:
    growths = sorted(after / before - 1 for before, after in zip(short, long, strict=True))
    spreads = [f"{max(costs) / min(costs) - 1:.1%}" for costs in (short, long)]
    between = f"{growths[0]:+.1%} to {growths[-1]:+.1%}"
    print(f"{num_running:>8} {median(growths):>+8.1%}   {between:<34} {', '.join(spreads)}")


def _measured_apart(num_running: int, cell: Cell) -> Figures:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_figures, num_running, *cell).result()


def _figures(num_running: int, context_len: int, past_len: int) -> Figures:
    steps = _steady_steps(num_running, context_len, past_len)
    totals = sorted(map(sum, steps))
    seconds = [*map(median, zip(*steps, strict=True)), median(totals), totals[len(totals) * 99 // 100]]
    return [1e3 * each for each in seconds]


def _steady_steps(num_requests: int, context_len: int, past_len: int = 0) -> list[list[float]]:
    """Seconds per phase of each step in which every request decodes."""
    max_model_len = max(context_len, past_len) + _BLOCK_SIZE + 4 * _NUM_STEPS
    core = _idle_core(num_requests, max_model_len, num_requests * (past_len + context_len))
    if past_len:
        _serve_and_end(core, num_requests, past_len)
    _add_requests(core, num_requests, context_len)
    answers: list[list[Buffer]] = []
    for _ in range(2):
        plan = core.schedule(0)
        assert plan is not None
        answers.append(_answer(plan))
        core.settle()
    gc.collect()
    gc.freeze()
    steps: list[list[float]] = []
    while len(steps) < _NUM_STEPS:
        plan, times = _step(core, answers.pop(0))
        if len(plan.scheduled_slots) == plan.num_tokens == num_requests and not plan.admissions:
            steps.append([after - before for before, after in pairwise(times)])
        answers.append(_answer(plan))
    gc.unfreeze()
    return steps


def _step(core: Scheduler, answer: list[Buffer]) -> tuple[StepPlan, list[float]]:
    """Enters an answer and cuts the next plan; returns the moments between its phases."""
    times = [perf_counter()]
    result = decode_answer(answer)
    assert isinstance(result, StepResult)
    times.append(perf_counter())
    core.apply(result)
    times.append(perf_counter())
    plan = core.schedule(0)
    assert plan is not None
    times.append(perf_counter())
    encode_plan(plan)
    times.append(perf_counter())
    for events in core.drain_events().values():
        token_frame(plan.step_id, events).SerializeToString()
    times.append(perf_counter())
    core.settle()
    times.append(perf_counter())
    return plan, times


def _idle_core(num_requests: int, max_model_len: int, num_prompt_tokens: int) -> Scheduler:
    """A core with a worker that holds all those prompts, and what the requests go on to decode."""
    core = Scheduler(CoreLimits(max_num_requests=num_requests))
    num_tokens = num_prompt_tokens + num_requests * (2 * _BLOCK_SIZE + 4 * _NUM_STEPS)
    capacity = GroupCapacity(
        num_blocks=num_tokens // _BLOCK_SIZE + 2 * num_requests,
        block_size=_BLOCK_SIZE,
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_tokens,
        max_model_len=max_model_len,
        vocab_size=32_000,
    )
    core.add_group(0, 1, capacity)
    return core


def _serve_and_end(core: Scheduler, num_requests: int, prompt_len: int) -> None:
    """Leaves the blocks of so many prompts remembered, held by nobody, and nothing running."""
    _add_requests(core, num_requests, prompt_len, first_token=num_requests)
    plan = core.schedule(0)
    assert plan is not None
    assert plan.num_tokens >= num_requests * prompt_len
    result = decode_answer(_answer(plan))
    assert isinstance(result, StepResult)
    core.apply(result)
    core.abort_owner(OwnerId(1))
    core.drain_events()
    assert core.stats().num_cached_blocks >= num_requests * (prompt_len // _BLOCK_SIZE)


def _add_requests(core: Scheduler, num_requests: int, context_len: int, first_token: int = 0) -> None:
    """Requests whose contexts are spread over a block, each of other tokens."""
    for handle in range(num_requests):
        prompt_len = context_len + handle % _BLOCK_SIZE
        start = first_token + handle
        request = Request(
            owner=OwnerId(1),
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=token_ids_of(at % 32_000 for at in range(start, start + prompt_len)),
            sampling=Sampling(max_tokens=_BLOCK_SIZE + 4 * _NUM_STEPS),
        )
        core.add(request)


def _answer(plan: StepPlan) -> list[Buffer]:
    """One token for every row: every prompt here fits into the step that admits it."""
    result = StepResult(
        group_id=plan.group_id,
        epoch=plan.epoch,
        step_id=plan.step_id,
        num_tokens=[1] * plan.num_rows,
        token_ids=[(7 * plan.step_id + 31 * row) % 32_000 for row in range(plan.num_rows)],
    )
    return encode_result(result)


if __name__ == "__main__":
    main()
