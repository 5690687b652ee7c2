"""A step that the device may still be working on, and its answer once it is done.

Copies from the device were ordered when the step was launched; whoever calls waits for them and for nothing else.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quire.wire.plan import NO_LOGPROBS, StepPlan
from quire.wire.result import StepResult
from quire_worker.slot_table import StepColumns


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLogprobs:
    """Log-probability columns of the rows that asked, on their way to the host."""

    rows: list[int]
    logprobs: Tensor  # [L] float32
    ranks: Tensor  # [L] int32
    top_ids: Tensor  # [L, num_top] int64
    top_logprobs: Tensor  # [L, num_top] float32


class PendingResult:
    """The answer of one launched step."""

    def __init__(
        self,
        plan: StepPlan,
        columns: StepColumns,
        drawn: Tensor,
        logprobs: HostLogprobs | None,
        done: "torch.cuda.Event | None",
    ) -> None:
        self._plan = plan
        self._columns = columns
        self._drawn = drawn
        self._logprobs = logprobs
        self._done = done

    @property
    def is_ready(self) -> bool:
        """Whether calling would not wait. Raises what the device reports of a failed step."""
        return self._done is None or self._done.query()

    def __call__(self) -> StepResult:
        """Waits for the step and gives its result."""
        if self._done is not None:
            self._done.synchronize()
        row_of_plan_row = np.empty_like(self._columns.plan_rows)
        row_of_plan_row[self._columns.plan_rows] = np.arange(len(row_of_plan_row))
        drawn: list[int] = self._drawn.numpy()[row_of_plan_row].tolist()
        result = StepResult(
            group_id=self._plan.group_id,
            epoch=self._plan.epoch,
            step_id=self._plan.step_id,
            num_tokens=[int(token >= 0) for token in drawn],
            token_ids=[token for token in drawn if token >= 0],
        )
        if self._logprobs is not None:
            self._add_logprobs(result, self._logprobs, drawn, row_of_plan_row.tolist())
        return result

    def _add_logprobs(
        self, result: StepResult, columns: HostLogprobs, drawn: list[int], rows: list[int]
    ) -> None:
        """Fills the log-probability columns, in the order of the result's tokens: `drawn` by row of the plan."""
        at_of_row = {row: at for at, row in enumerate(columns.rows)}
        logprobs, ranks = columns.logprobs.tolist(), columns.ranks.tolist()
        top_ids, top_logprobs = columns.top_ids.tolist(), columns.top_logprobs.tolist()
        wanted = self._columns.num_logprobs.tolist()
        for row, token in zip(rows, drawn, strict=True):
            if token < 0:
                continue
            num_alternatives = wanted[row]
            if num_alternatives == NO_LOGPROBS:
                result.logprob_lens.append(0)
                continue
            at = at_of_row[row]
            result.logprob_lens.append(1 + num_alternatives)
            result.logprob_ids += [token, *top_ids[at][:num_alternatives]]
            result.logprob_values += [logprobs[at], *top_logprobs[at][:num_alternatives]]
            result.logprob_ranks += [ranks[at], *range(1, num_alternatives + 1)]
