"""How milestones become spans: requests that end early, resume or are preempted, and steps that are never answered."""

from dataclasses import dataclass, field

import pytest
from quire_scheduler.core import Milestone, MilestoneKind, OwnerId, Request, Sampling
from quire_scheduler.engine_trace import EngineTrace

from quire.wire.plan import StepPlan

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_S = 1_000_000_000


@dataclass
class _Span:
    name: str
    parent: str
    start_ns: int
    attributes: dict
    links: list[str]
    traceparent: str
    events: list[tuple[str, int]] = field(default_factory=list)
    ends: list[tuple[int, str | None]] = field(default_factory=list)

    def set(self, attributes):
        self.attributes.update(attributes)

    def event(self, name, attributes=None, time_ns=None):
        self.events.append((name, time_ns))

    def end(self, end_ns=None, error=None):
        self.ends.append((end_ns, error))


class _Tracing:
    """Keeps its spans in the process."""

    enabled = True

    def __init__(self) -> None:
        self.spans: list[_Span] = []

    def start_span(
        self, name, parent_traceparent="", start_ns=None, attributes=None, links=(), *, is_server=False
    ):
        number = len(self.spans)
        span = _Span(
            name, parent_traceparent, start_ns, dict(attributes or {}), list(links), f"span-{number}"
        )
        self.spans.append(span)
        return span

    def shutdown(self) -> None:
        pass


@pytest.fixture
def tracing() -> _Tracing:
    return _Tracing()


@pytest.fixture
def trace(tracing: _Tracing) -> EngineTrace:
    return EngineTrace(tracing)


def _request(handle: int = 1, **facts) -> Request:
    return Request(
        owner=OwnerId(1),
        handle=handle,
        request_id=f"r{handle}",
        prompt_token_ids=[1, 2, 3],
        sampling=Sampling(max_tokens=5),
        **facts,
    )


def _plan(step_id: int = 0) -> StepPlan:
    return StepPlan(group_id=1, epoch=2, step_id=step_id, scheduled_slots=[0], scheduled_tokens=[1])


def test_a_moment_is_placed_by_the_core_clock(trace: EngineTrace, tracing: _Tracing) -> None:
    request = _request()
    trace.open(request, _PARENT, "m", 10 * _S)
    milestones = [
        Milestone(MilestoneKind.SCHEDULED, request, 0, 100.0),
        Milestone(MilestoneKind.PREFILL_CHUNK, request, 3, 100.0),
        Milestone(MilestoneKind.FIRST_TOKEN, request, 1, 101.5),
    ]
    trace.record(milestones, 102.0, 13 * _S)
    queue, prefill, decode = tracing.spans
    assert (queue.start_ns, queue.ends) == (10 * _S, [(11 * _S, None)])
    assert (prefill.start_ns, prefill.events) == (11 * _S, [("chunk", 11 * _S)])
    assert (prefill.ends, decode.start_ns) == ([(12.5 * _S, None)], 12.5 * _S)
    assert {span.parent for span in tracing.spans} == {_PARENT}


def test_a_request_that_ends_while_it_waits_has_a_queue_and_nothing_else(
    trace: EngineTrace, tracing: _Tracing
) -> None:
    request = _request()
    trace.open(request, _PARENT, "m", 10 * _S)
    # An abort brings no time of its own: the core's clock may lie far back.
    trace.record([Milestone(MilestoneKind.FINISHED, request, 0, 0.0)], 102.0, 13 * _S)
    (queue,) = tracing.spans
    assert queue.ends == [(13 * _S, None)]
    assert not trace.is_recording


def test_a_prompt_computed_again_after_a_preemption_stays_within_decode(
    trace: EngineTrace, tracing: _Tracing
) -> None:
    request = _request(resumed=((0, [7]),))
    trace.open(request, _PARENT, "m", 0)
    kinds = [
        MilestoneKind.SCHEDULED,
        MilestoneKind.FIRST_TOKEN,
        MilestoneKind.PREFILL_CHUNK,
        MilestoneKind.FINISHED,
    ]
    trace.record([Milestone(kind, request, 4, 1.0) for kind in kinds], 1.0, _S)
    decode = tracing.spans[-1]
    assert [span.name for span in tracing.spans] == ["queue", "prefill", "decode"]
    assert decode.events == [("chunk", _S)]
    assert decode.attributes["gen_ai.usage.output_tokens"] == 4
    assert decode.attributes["quire.resumed"] is True
    assert all(len(span.ends) == 1 for span in tracing.spans)


def test_a_step_is_in_the_first_trace_and_linked_to_the_others(trace: EngineTrace, tracing: _Tracing) -> None:
    requests = [_request(handle) for handle in (1, 2, 3)]
    for request in requests:
        trace.open(request, _PARENT, "m", 0)
    plan = _plan()
    trace.begin_step(plan, requests, _S)
    trace.end_step(1, 2, 0, 2 * _S)
    trace.end_step(1, 2, 0, 3 * _S)
    step = tracing.spans[-1]
    assert (step.name, step.parent, step.links) == ("step", "span-0", ["span-1", "span-2"])
    assert step.ends == [(2 * _S, None)]
    assert plan.traceparent == step.traceparent


def test_a_step_without_traced_requests_is_no_span(trace: EngineTrace, tracing: _Tracing) -> None:
    plan = _plan()
    trace.begin_step(plan, [_request()], _S)
    assert (tracing.spans, plan.traceparent) == ([], "")


def test_steps_of_a_group_that_is_reset_end_as_failed(trace: EngineTrace, tracing: _Tracing) -> None:
    request = _request()
    trace.open(request, _PARENT, "m", 0)
    for step_id in (0, 1):
        trace.begin_step(_plan(step_id), [request], _S)
    trace.void_steps(2, "another group", 2 * _S)
    trace.void_steps(1, "frames were lost", 3 * _S)
    assert [span.ends for span in tracing.spans[1:]] == [[(3 * _S, "frames were lost")]] * 2
    trace.record([Milestone(MilestoneKind.FINISHED, request, 0, 0.0)], 0.0, 4 * _S)
    assert not trace.is_recording
