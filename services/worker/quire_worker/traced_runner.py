"""A runner whose steps are spans: `execute`, from the launch of a step to its result, for each step that is traced.

Stands in the place of the runner where tracing is on, so that a step costs nothing where it is off.
"""

from quire.telemetry.attribute import STEP_ID, STEP_ROWS, STEP_TOKENS
from quire.telemetry.tracing import Span, Tracing
from quire.wire.plan import StepPlan
from quire.wire.result import StepResult
from quire_worker.pending_result import PendingResult
from quire_worker.runner import Runner


class TracedRunner:
    """A runner around a runner."""

    def __init__(self, runner: Runner, tracing: Tracing) -> None:
        self._runner = runner
        self._tracing = tracing

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return self._runner.num_used_slots

    def drop_slots(self) -> None:
        """Forgets every sequence."""
        self._runner.drop_slots()

    def draw_if_ready(self) -> None:
        """Launches what waits for tokens that have arrived."""
        self._runner.draw_if_ready()

    def execute(self, plan: StepPlan) -> "PendingResult | TracedResult":
        """Launches one plan. Raises what the runner raises."""
        if not plan.traceparent:
            return self._runner.execute(plan)
        facts = {STEP_ID: plan.step_id, STEP_ROWS: plan.num_rows, STEP_TOKENS: plan.num_tokens}
        span = self._tracing.start_span("execute", plan.traceparent, attributes=facts)
        try:
            return TracedResult(self._runner.execute(plan), span)
        except Exception as error:
            span.end(error=str(error))
            raise


class TracedResult:
    """The answer of one launched step, which ends the step's span."""

    def __init__(self, pending: PendingResult, span: Span) -> None:
        self._pending = pending
        self._span = span

    @property
    def plan(self) -> StepPlan:
        """The plan that it answers."""
        return self._pending.plan

    @property
    def is_ready(self) -> bool:
        """Whether calling would not wait."""
        return self._pending.is_ready

    def __call__(self) -> StepResult:
        """Waits for the step and gives its result."""
        try:
            result = self._pending()
        except Exception as error:
            self._span.end(error=str(error))
            raise
        self._span.end()
        return result
