"""Cost of one scheduler step by phase, beside its budget of 0.3 ms + 2 µs per running request.

    python benchmarks/scheduler_step.py

A steady decode step in the order in which the loop does it: decode the answer, apply it, schedule the next plan, encode
it, and deliver the events as one serialized TokenFrame. The answer itself is made outside the measured time. Context
lengths are spread over a block, as in service, so that one request in sixteen crosses into a new block in each step.
Prints medians and the 99th percentile of whole steps, at two context lengths. Long-lived objects are frozen first, as
the scheduler process does once it is up: what is measured is the step, not a collection of ten million prompt tokens.
"""

import gc
from itertools import pairwise
from statistics import median
from time import perf_counter

from quire_scheduler.core import CoreLimits, GroupCapacity, OwnerId, Request, Sampling, Scheduler
from quire_scheduler.owner import token_frame

from quire.wire.codec import Buffer, decode_answer, encode_plan, encode_result
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

_PHASES = ("decode", "apply", "schedule", "encode", "deliver")
_NUM_STEPS = 400
_BLOCK_SIZE = 16


def main() -> None:
    """Prints the table."""
    phases = " ".join(f"{phase:>9}" for phase in _PHASES)
    print(
        f"{'running':>8} {'context':>8} {phases} {'ms/step':>9} {'p99 ms':>8} {'budget ms':>10} {'ratio':>6}"
    )
    for num_requests in (1, 64, 256, 1024):
        for context_len in (100, 10_000):
            _print_row(num_requests, context_len, _steady_steps(num_requests, context_len))


def _print_row(num_requests: int, context_len: int, steps: list[list[float]]) -> None:
    phases = " ".join(f"{1e3 * median(column):>9.3f}" for column in zip(*steps, strict=True))
    totals = sorted(1e3 * sum(step) for step in steps)
    cost_ms, p99_ms = median(totals), totals[len(totals) * 99 // 100]
    budget_ms = 0.3 + 0.002 * num_requests
    row = f"{num_requests:>8} {context_len:>8} {phases} {cost_ms:>9.3f} {p99_ms:>8.3f} {budget_ms:>10.3f}"
    print(f"{row} {cost_ms / budget_ms:>6.2f}")


def _steady_steps(num_requests: int, context_len: int) -> list[list[float]]:
    """Seconds per phase of each step in which every request decodes."""
    core = _loaded_core(num_requests, context_len)
    answers = [_answer(plan) for _ in range(2) if (plan := core.schedule(0)) is not None]
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
    return plan, times


def _loaded_core(num_requests: int, context_len: int) -> Scheduler:
    max_model_len = context_len + _BLOCK_SIZE + 4 * _NUM_STEPS
    core = Scheduler(CoreLimits(max_num_requests=num_requests))
    capacity = GroupCapacity(
        num_blocks=num_requests * (max_model_len // _BLOCK_SIZE + 1),
        block_size=_BLOCK_SIZE,
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_requests * (context_len + _BLOCK_SIZE),
        max_model_len=max_model_len,
        vocab_size=32_000,
    )
    core.add_group(0, 1, capacity)
    for handle in range(num_requests):
        prompt_len = context_len + handle % _BLOCK_SIZE
        request = Request(
            owner=OwnerId(1),
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=[(handle + at) % 32_000 for at in range(prompt_len)],
            sampling=Sampling(max_tokens=max_model_len - prompt_len),
        )
        core.add(request)
    return core


def _answer(plan: StepPlan) -> list[Buffer]:
    """One token for every row: every prompt here fits into the step that admits it."""
    result = StepResult(
        group_id=plan.group_id,
        epoch=plan.epoch,
        step_id=plan.step_id,
        num_tokens=[1] * plan.num_rows,
        token_ids=[5] * plan.num_rows,
    )
    return encode_result(result)


if __name__ == "__main__":
    main()
