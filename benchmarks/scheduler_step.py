"""Cost of one scheduler step, beside its budget of 0.3 ms + 2 µs per running request.

    python benchmarks/scheduler_step.py

A step is: cut the plan, encode it, decode the answer, enter it, drain the events and build the TokenFrame. The answer
itself is prepared outside the measured time. Prints the median of steady decode steps at two context lengths.
"""

from statistics import median
from time import perf_counter

from quire_scheduler.core import CoreLimits, GroupCapacity, OwnerId, Request, Sampling, Scheduler
from quire_scheduler.owner import token_frame

from quire.wire.codec import Buffer, decode_answer, encode_plan, encode_result
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

_NUM_STEPS = 200
_BLOCK_SIZE = 16


def main() -> None:
    """Prints the table."""
    print(f"{'running':>8} {'context':>8} {'ms/step':>9} {'budget ms':>10} {'ratio':>6}")
    for num_requests in (1, 64, 256, 1024):
        for context_len in (100, 10_000):
            cost_ms = 1e3 * _step_cost_s(num_requests, context_len)
            budget_ms = 0.3 + 0.002 * num_requests
            row = f"{num_requests:>8} {context_len:>8} {cost_ms:>9.3f} {budget_ms:>10.3f}"
            print(f"{row} {cost_ms / budget_ms:>6.2f}")


def _step_cost_s(num_requests: int, context_len: int) -> float:
    core = _loaded_core(num_requests, context_len)
    answers = [_answer(plan) for _ in range(2) if (plan := core.schedule(0)) is not None]
    costs: list[float] = []
    while len(costs) < _NUM_STEPS:
        began = perf_counter()
        result = decode_answer(answers.pop(0))
        assert isinstance(result, StepResult)
        core.apply(result)
        plan = core.schedule(0)
        assert plan is not None
        encode_plan(plan)
        for events in core.drain_events().values():
            token_frame(plan.step_id, events).SerializeToString()
        ended = perf_counter()
        if (
            len(plan.scheduled_slots) == num_requests
            and not plan.admissions
            and plan.num_tokens == num_requests
        ):
            costs.append(ended - began)
        answers.append(_answer(plan))
    return median(costs)


def _loaded_core(num_requests: int, context_len: int) -> Scheduler:
    max_model_len = context_len + 4 * _NUM_STEPS
    core = Scheduler(CoreLimits(max_num_requests=num_requests))
    capacity = GroupCapacity(
        num_blocks=num_requests * (max_model_len // _BLOCK_SIZE + 1),
        block_size=_BLOCK_SIZE,
        max_num_seqs=num_requests,
        max_num_batched_tokens=num_requests * context_len,
        max_model_len=max_model_len,
        vocab_size=32_000,
    )
    core.add_group(0, 1, capacity)
    for handle in range(num_requests):
        prompt = [(handle + at) % 32_000 for at in range(context_len)]
        sampling = Sampling(max_tokens=max_model_len - context_len)
        core.add(
            Request(
                owner=OwnerId(1),
                handle=handle,
                request_id=str(handle),
                prompt_token_ids=prompt,
                sampling=sampling,
            )
        )
    return core


def _answer(plan: StepPlan) -> list[Buffer]:
    """One token for every row: every prompt here fits into the step that admits it."""
    num_rows = plan.num_rows
    result = StepResult(
        group_id=plan.group_id,
        epoch=plan.epoch,
        step_id=plan.step_id,
        num_tokens=[1] * num_rows,
        token_ids=[5] * num_rows,
    )
    return encode_result(result)


if __name__ == "__main__":
    main()
