"""The work of a steady step, counted in executed lines of the core: it follows what changed, not how long contexts are."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import quire_scheduler.core
from quire_scheduler.core import CoreLimits, GroupCapacity, OwnerId, Request, Sampling, Scheduler

from quire.wire.plan import StepPlan
from quire.wire.result import StepResult

_CORE = str(Path(quire_scheduler.core.__file__).parent)
_NUM_REQUESTS, _BLOCK_SIZE, _NUM_STEPS = 16, 16, 32


def _decoding_core(context_len: int) -> Scheduler:
    """Every request decodes; one in sixteen enters a new block in each step."""
    max_model_len = context_len + 8 * _BLOCK_SIZE
    core = Scheduler(CoreLimits(pipeline_depth=1))
    capacity = GroupCapacity(
        num_blocks=_NUM_REQUESTS * (max_model_len // _BLOCK_SIZE + 1), block_size=_BLOCK_SIZE,
        max_num_seqs=_NUM_REQUESTS, max_num_batched_tokens=_NUM_REQUESTS * max_model_len,
        max_model_len=max_model_len, vocab_size=1000,
    )  # fmt: skip
    core.add_group(0, 1, capacity)
    for handle in range(_NUM_REQUESTS):
        prompt = [(handle + at) % 1000 for at in range(context_len + handle)]
        sampling = Sampling(max_tokens=4 * _BLOCK_SIZE)
        core.add(
            Request(
                owner=OwnerId(1),
                handle=handle,
                request_id=str(handle),
                prompt_token_ids=prompt,
                sampling=sampling,
            )
        )
    _step(core)
    return core


def _step(core: Scheduler) -> None:
    plan = core.schedule(0)
    assert isinstance(plan, StepPlan)
    core.apply(
        StepResult(
            group_id=0,
            epoch=1,
            step_id=plan.step_id,
            num_tokens=[1] * plan.num_rows,
            token_ids=[5] * plan.num_rows,
        )
    )
    core.drain_events()


def _executed_lines(core: Scheduler) -> int:
    num_lines = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal num_lines
        if not frame.f_code.co_filename.startswith(_CORE):
            return None
        num_lines += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for _ in range(_NUM_STEPS):
            _step(core)
    finally:
        sys.settrace(before)
    return num_lines


def test_a_steady_step_does_the_same_work_at_a_hundred_times_the_context() -> None:
    short, long = (_executed_lines(_decoding_core(context_len)) for context_len in (96, 9600))
    assert short > _NUM_REQUESTS * _NUM_STEPS, "the trace sees the core"
    assert long == short
