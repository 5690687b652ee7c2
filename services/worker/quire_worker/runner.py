"""Executes plans on a device: slots in, one step, draws out.

Joins the host's slot table, the batch on the device and the step over it; knows no socket and no scheduler. `execute`
launches and returns at once: the device can be given the next step before this one is read.
"""

import numpy as np
import torch
from quire_kernels import token_logprobs
from torch import Tensor

from quire.wire.plan import NO_LOGPROBS, StepPlan
from quire_worker.device_step import DeviceStep
from quire_worker.pending_result import HostLogprobs, PendingResult
from quire_worker.slot_table import SlotTable, StepColumns
from quire_worker.step_graph import StepGraphs
from quire_worker.step_shape import ShapeTable, StepShape


class Runner:
    """One device's share of a group."""

    def __init__(
        self,
        step: DeviceStep,
        slots: SlotTable,
        shapes: ShapeTable | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._step = step
        self._slots = slots
        self._shapes = shapes
        self._graphs = graphs

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return self._slots.num_used_slots

    def drop_slots(self) -> None:
        """Forgets every sequence; weights and memory stay."""
        self._slots.clear()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult:
        """Launches one plan. Raises `PlanError`, with nothing launched, when it contradicts the slots."""
        changes = self._slots.update(plan)
        columns = self._slots.advance(plan, changes)
        shape = self._shape_of(columns)
        batch = self._step.batch
        batch.enter(changes, self._step.kv_cache)
        batch.load(columns, shape)
        self._forward(shape)
        self._draw(shape.num_rows)
        return self._pending(plan, columns)

    def _forward(self, shape: StepShape) -> None:
        if self._graphs is None or not self._graphs.forwards.replay(shape):
            self._step.forward(shape)

    def _draw(self, num_rows: int) -> None:
        if self._graphs is None or not self._graphs.draws.replay(num_rows):
            self._step.draw(num_rows)

    def _shape_of(self, columns: StepColumns) -> StepShape:
        if self._shapes is None:
            return StepShape(columns.num_tokens, columns.num_rows, columns.is_decode, columns.max_seq_len)
        return self._shapes.shape_of(
            columns.num_tokens,
            columns.num_rows,
            is_decode=columns.is_decode,
            max_seq_len=columns.max_seq_len,
        )

    def _pending(self, plan: StepPlan, columns: StepColumns) -> PendingResult:
        drawn = self._step.batch.drawn[: columns.num_rows]
        logprobs = self._logprobs(columns, drawn)
        drawn = _to_host_async(drawn)
        done = None
        if self._step.kv_cache.is_cuda:
            done = torch.cuda.Event()
            done.record()
        return PendingResult(plan, columns, drawn, logprobs, done)

    def _logprobs(self, columns: StepColumns, drawn: Tensor) -> HostLogprobs | None:
        rows = np.flatnonzero((columns.num_logprobs != NO_LOGPROBS) & columns.draws)
        if len(rows) == 0:
            return None
        index = torch.from_numpy(rows).to(drawn.device, non_blocking=True)
        num_top = max(0, int(columns.num_logprobs.max()))
        logits = self._step.logits(columns.num_rows)
        # A row of a slot that had ended drew -1; what is computed for it is dropped with it.
        measured = token_logprobs(logits[index], drawn[index].clamp(min=0), num_top)
        logprobs, ranks, top_ids, top_logprobs = map(_to_host_async, measured)
        return HostLogprobs(
            rows=rows.tolist(), logprobs=logprobs, ranks=ranks, top_ids=top_ids, top_logprobs=top_logprobs
        )


def _to_host_async(column: Tensor) -> Tensor:
    """A copy in host memory, complete once the device has reached this point; on a CPU at once."""
    if not column.is_cuda:
        return column.clone()
    host = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
    return host.copy_(column, non_blocking=True)
