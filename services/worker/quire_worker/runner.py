"""Executes plans on a device: slots in, one step, draws out.

Joins the host's slot table, the batch on the device and the step over it; knows no socket and no scheduler. `execute`
launches and returns at once: the device can be given the next step before this one is read.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from quire_kernels import likeliest_tokens, token_logprobs
from torch import Tensor

from quire.wire.plan import NO_LOGPROBS, StepPlan
from quire_worker.device_step import DeviceStep
from quire_worker.pending_result import DrawOutcome, HostCandidates, HostLogprobs, PendingResult
from quire_worker.prompt_logprobs import HostPromptLogprobs, tokens_before
from quire_worker.slot_grammar import GrammarRow, SlotGrammars
from quire_worker.slot_table import SlotTable
from quire_worker.step_columns import StepColumns
from quire_worker.step_graph import ANY_CHANGES, StepGraphs
from quire_worker.step_shape import ShapeTable, StepShape


class Runner:
    """One device's share of a group."""

    def __init__(
        self,
        step: DeviceStep,
        slots: SlotTable,
        grammars: SlotGrammars,
        shapes: ShapeTable | None = None,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._step = step
        self._slots = slots
        self._grammars = grammars
        self._shapes = shapes
        self._graphs = graphs
        self._held: PendingResult | None = None
        """A step whose draw is not launched."""
        self._unread: list[PendingResult] = []
        """Steps with rows under grammars whose tokens have not arrived."""

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return self._slots.num_used_slots

    def drop_slots(self) -> None:
        """Forgets every sequence; weights and memory stay."""
        self._slots.clear()
        self._grammars.clear()
        self._held = None
        self._unread.clear()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult:
        """Launches one plan. Raises `PlanError`, with nothing launched, when it contradicts the slots.

        The draw of a step under grammars that need a token on its way to the host is held back: until `draw_if_ready`
        finds that it has arrived, until the next plan, or until somebody waits for the result.
        """
        if self._held is not None:
            self._held.draw()
        changes = self._slots.update(plan)
        columns = self._slots.advance(plan, changes)
        bound_rows = self._grammars.enter(changes, columns)
        shape = self._shape_of(columns)
        batch = self._step.batch
        batch.load(changes, columns, shape)
        batch.enter(changes, self._step.kv_cache, self._replay_changes)
        prompt_logprobs = self._forward(columns, shape)
        needs = self._needs(bound_rows)
        draw = partial(self._draw, columns, shape, bound_rows)
        pending = PendingResult(plan, columns, draw, bound_rows, needs, prompt_logprobs)
        if bound_rows:
            self._unread.append(pending)
        if needs:
            self._held = pending
        else:
            pending.draw()
        return pending

    def draw_if_ready(self) -> None:
        """Launches the draw that is held back, if the tokens that it needs have arrived; waits for no step."""
        if self._held is not None and self._held.can_draw:
            self._held.draw()
            self._held = None

    def _forward(self, columns: StepColumns, shape: StepShape) -> HostPromptLogprobs | None:
        """Launches the forward pass; one that reports on prompts has logits of its own and is no captured one."""
        if columns.prompt_stretches:
            tokens = self._step.batch.to_device(tokens_before(columns.prompt_stretches))
            logits = self._step.forward_reporting(shape, tokens)
            return HostPromptLogprobs(columns.prompt_stretches, logits)
        if self._graphs is None or not self._graphs.forwards.replay(shape):
            self._step.forward(shape)
        return None

    def _replay_changes(self) -> bool:
        return self._graphs is not None and self._graphs.changes.replay(ANY_CHANGES)

    def _needs(self, bound_rows: list[GrammarRow]) -> list[PendingResult]:
        """The steps whose tokens the grammars of the rows must follow first."""
        self._unread = [step for step in self._unread if not step.was_read]
        needs = self._unread if any(each.grammar.num_awaited for each in bound_rows) else []
        for each in bound_rows:
            each.grammar.num_awaited += 1
        return list(needs)

    @torch.inference_mode()
    def _draw(self, columns: StepColumns, shape: StepShape, bound_rows: list[GrammarRow]) -> DrawOutcome:
        wanted = np.flatnonzero((columns.num_logprobs != NO_LOGPROBS) & columns.draws)
        # Log-probabilities are those of the logits before any mask.
        logits = self._step.logits(columns.num_rows)[self._index(wanted)] if len(wanted) else None
        if bound_rows:
            masks = self._grammars.masks(bound_rows)
            self._step.mask(masks.rows, masks.bitmask)
            self._step.batch.lift_min_len(masks.forced_ends)
        if self._graphs is None or not self._graphs.draws.replay(shape.num_rows):
            self._step.draw(shape.num_rows)
        drawn = self._step.batch.drawn[: columns.num_rows]
        logprobs = self._logprobs(columns, wanted, logits, drawn) if logits is not None else None
        candidates = self._candidates(columns) if columns.num_candidates.any() else None
        return DrawOutcome(
            drawn=_to_host_async(drawn), logprobs=logprobs, candidates=candidates, done=self._done()
        )

    def _shape_of(self, columns: StepColumns) -> StepShape:
        if self._shapes is None:
            return StepShape(columns.num_tokens, columns.num_rows, columns.is_decode, columns.max_seq_len)
        return self._shapes.shape_of(
            columns.num_tokens,
            columns.num_rows,
            is_decode=columns.is_decode,
            max_seq_len=columns.max_seq_len,
        )

    def _candidates(self, columns: StepColumns) -> HostCandidates:
        """What the beams of a step bring."""
        rows = np.flatnonzero(columns.num_candidates)
        logits = self._step.logits(columns.num_rows)[self._index(rows)]
        temperature = self._step.batch.state.temperature[self._index(columns.slots[rows])]
        ids, logprobs = likeliest_tokens(logits, temperature, int(columns.num_candidates.max()))
        return HostCandidates(rows=rows.tolist(), ids=_to_host_async(ids), logprobs=_to_host_async(logprobs))

    def _logprobs(
        self, columns: StepColumns, wanted: NDArray[np.int64], logits: Tensor, drawn: Tensor
    ) -> HostLogprobs:
        num_top = max(0, int(columns.num_logprobs.max()))
        # A row of a slot that had ended drew -1; what is computed for it is dropped with it.
        measured = token_logprobs(logits, drawn[self._index(wanted)].clamp(min=0), num_top)
        logprobs, ranks, top_ids, top_logprobs = map(_to_host_async, measured)
        return HostLogprobs(
            rows=wanted.tolist(), logprobs=logprobs, ranks=ranks, top_ids=top_ids, top_logprobs=top_logprobs
        )

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._step.kv_cache.device, non_blocking=True)

    def _done(self) -> "torch.cuda.Event | None":
        if not self._step.kv_cache.is_cuda:
            return None
        done = torch.cuda.Event()
        done.record()
        return done


def _to_host_async(column: Tensor) -> Tensor:
    """A copy in host memory, complete once the device has reached this point; on a CPU at once."""
    if not column.is_cuda:
        return column.clone()
    host = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
    return host.copy_(column, non_blocking=True)
