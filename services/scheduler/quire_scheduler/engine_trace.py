"""Spans of the engine: `queue`, `prefill` and `decode` of each traced request, and one `step` for each step they ran in.

Told what the core noted and when; decides nothing and reads no clock. A step belongs to the trace of the first traced
request in it and is linked to the others, so that a batch is one span however many requests it carries.
"""

from collections.abc import Iterable

from quire.telemetry import attribute
from quire.telemetry.tracing import Attributes, Span, Tracing, is_sampled
from quire.wire.plan import StepPlan
from quire_scheduler.core import Milestone, MilestoneKind, Request

_NS_PER_S = 1_000_000_000


class EngineTrace:
    """The open spans of one scheduler."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._requests: dict[Request, _RequestSpans] = {}
        self._steps: dict[tuple[int, int, int], Span] = {}

    @property
    def is_recording(self) -> bool:
        """Whether any span is open; while none is, nobody needs to tell this object anything."""
        return bool(self._requests or self._steps)

    def wants(self, traceparent: str) -> bool:
        """Whether a request that came with this parent is to be traced."""
        return self._tracing.enabled and is_sampled(traceparent)

    def open(self, request: Request, traceparent: str, model: str, unix_ns: int) -> None:
        """A traced request has entered the queue."""
        self._requests[request] = _RequestSpans(self._tracing, request, traceparent, model, unix_ns)

    def record(self, milestones: Iterable[Milestone], now: float, unix_ns: int) -> None:
        """Enters what the core noted; `now` is the core's clock at `unix_ns`."""
        for milestone in milestones:
            spans = self._requests.get(milestone.request)
            if spans is None:
                continue
            if milestone.kind is MilestoneKind.FINISHED:
                # An abort comes without the time, so that its end is the moment of this call.
                spans.finish(milestone.num_tokens, unix_ns)
                del self._requests[milestone.request]
            else:
                spans.enter(milestone, unix_ns - int((now - milestone.now) * _NS_PER_S))

    def begin_step(self, plan: StepPlan, requests: Iterable[Request], unix_ns: int) -> None:
        """A plan is about to be sent that has rows of these traced requests."""
        parents = [spans.traceparent for each in requests if (spans := self._requests.get(each))]
        if not parents:
            return
        facts = step_attributes(plan)
        span = self._tracing.start_span("step", parents[0], unix_ns, facts, links=parents[1:])
        plan.traceparent = span.traceparent
        self._steps[plan.group_id, plan.epoch, plan.step_id] = span

    def end_step(self, group_id: int, epoch: int, step_id: int, unix_ns: int) -> None:
        """A step was answered."""
        span = self._steps.pop((group_id, epoch, step_id), None)
        if span is not None:
            span.end(unix_ns)

    def void_steps(self, group_id: int, why: str, unix_ns: int) -> None:
        """The steps of a group that have no answer will get none."""
        for key in [key for key in self._steps if key[0] == group_id]:
            self._steps.pop(key).end(unix_ns, error=why)


def step_attributes(plan: StepPlan) -> Attributes:
    """What a step's span says of it."""
    return {
        attribute.GROUP_ID: plan.group_id,
        attribute.EPOCH: plan.epoch,
        attribute.STEP_ID: plan.step_id,
        attribute.STEP_ROWS: plan.num_rows,
        attribute.STEP_TOKENS: plan.num_tokens,
    }


class _RequestSpans:
    """Where one request stands: exactly one of its three spans is open."""

    def __init__(
        self, tracing: Tracing, request: Request, traceparent: str, model: str, unix_ns: int
    ) -> None:
        self._tracing = tracing
        self._parent = traceparent
        self._facts: Attributes = {
            attribute.REQUEST_MODEL: model,
            attribute.RESPONSE_ID: request.request_id,
            attribute.INPUT_TOKENS: len(request.prompt_token_ids),
            attribute.RESUMED: bool(request.resumed),
        }
        self._phase = tracing.start_span("queue", traceparent, unix_ns, self._facts)

    @property
    def traceparent(self) -> str:
        """The open span."""
        return self._phase.traceparent

    def enter(self, milestone: Milestone, at_ns: int) -> None:
        """A moment on the way; chunks after the first token are of a prompt computed again after a preemption."""
        match milestone.kind:
            case MilestoneKind.SCHEDULED:
                self._begin("prefill", at_ns, {attribute.CACHED_TOKENS: milestone.num_tokens})
            case MilestoneKind.PREFILL_CHUNK:
                self._phase.event("chunk", {attribute.COMPUTED_TOKENS: milestone.num_tokens}, at_ns)
            case MilestoneKind.FIRST_TOKEN:
                self._begin("decode", at_ns, {})
            case MilestoneKind.FINISHED:
                self.finish(milestone.num_tokens, at_ns)

    def finish(self, num_tokens: int, at_ns: int) -> None:
        """The request has ended."""
        self._phase.set({attribute.OUTPUT_TOKENS: num_tokens})
        self._phase.end(at_ns)

    def _begin(self, name: str, at_ns: int, facts: Attributes) -> None:
        self._phase.end(at_ns)
        self._phase = self._tracing.start_span(name, self._parent, at_ns, {**self._facts, **facts})
