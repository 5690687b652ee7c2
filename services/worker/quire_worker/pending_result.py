"""A step that the device may still be working on, and its answer once it is done.

Copies from the device were ordered when the step was launched; whoever calls waits for them and for nothing else. The
draw of a step whose rows are bound by grammars may need tokens of earlier steps: it is launched once they have arrived,
and until then the step is not ready.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from quire_kernels import NO_TOKEN_LEFT
from torch import Tensor

from quire.wire.plan import NO_LOGPROBS, StepPlan
from quire.wire.result import RowFailure, StepResult
from quire_worker.prompt_logprobs import HostPromptLogprobs
from quire_worker.slot_grammar import GrammarRow
from quire_worker.step_columns import StepColumns

_NO_TOKEN_RULE = "no token is left to draw: other parameters (allowed_token_ids, bad_words, min_tokens) forbid all that it allows"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostLogprobs:
    """Log-probability columns of the rows that asked, on their way to the host."""

    rows: list[int]
    logprobs: Tensor  # [L] float32
    ranks: Tensor  # [L] int32
    top_ids: Tensor  # [L, num_top] int64
    top_logprobs: Tensor  # [L, num_top] float32


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCandidates:
    """Candidates of the rows that are beams, on their way to the host."""

    rows: list[int]
    ids: Tensor  # [B, most candidates] int64
    logprobs: Tensor  # [B, most candidates] float32


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawOutcome:
    """What a draw brings, on its way to the host."""

    drawn: Tensor  # [R] int32: -1 where no token was drawn, NO_TOKEN_LEFT where none could be
    logprobs: HostLogprobs | None
    candidates: HostCandidates | None
    done: "torch.cuda.Event | None"
    """None where the device is the host."""


class PendingResult:
    """The answer of one step, whose forward pass is launched."""

    def __init__(
        self,
        plan: StepPlan,
        columns: StepColumns,
        launch_draw: Callable[[], DrawOutcome],
        bound_rows: Sequence[GrammarRow] = (),
        needs: "Sequence[PendingResult]" = (),
        prompt_logprobs: HostPromptLogprobs | None = None,
    ) -> None:
        self.plan = plan
        self._columns = columns
        self._launch_draw = launch_draw
        self._bound_rows = bound_rows
        self._needs = needs
        self._prompt_logprobs = prompt_logprobs
        self._outcome: DrawOutcome | None = None
        self._tokens: list[int] | None = None

    @property
    def can_draw(self) -> bool:
        """Whether `draw` would not wait."""
        return all(earlier.is_ready for earlier in self._needs)

    @property
    def is_ready(self) -> bool:
        """Whether calling would not wait. Raises what the device reports of a failed step."""
        outcome = self._outcome
        return outcome is not None and (outcome.done is None or outcome.done.query())

    @property
    def was_read(self) -> bool:
        """Whether its tokens have arrived and its grammars have followed them."""
        return self._tokens is not None

    def draw(self) -> DrawOutcome:
        """Launches the draw, unless it was launched before; waits for the tokens that it needs."""
        if self._outcome is None:
            for earlier in self._needs:
                earlier.read()
            self._needs = ()
            self._outcome = self._launch_draw()
        return self._outcome

    def read(self) -> list[int]:
        """Waits for the step; the tokens by row, -1 where none was drawn and NO_TOKEN_LEFT where none could be."""
        if self._tokens is None:
            outcome = self.draw()
            if outcome.done is not None:
                outcome.done.synchronize()
            self._tokens = outcome.drawn.tolist()
            for each in self._bound_rows:
                each.grammar.follow(self._tokens[each.row])
        return self._tokens

    def __call__(self) -> StepResult:
        """Waits for the step and gives its result."""
        tokens = list(self.read())
        for each in self._bound_rows:
            if each.grammar.error:
                tokens[each.row] = -1
        rows = self._columns.plan_rows.argsort().tolist()
        drawn = [tokens[row] for row in rows]
        every_row_drew = min(drawn) >= 0
        result = StepResult(
            group_id=self.plan.group_id,
            epoch=self.plan.epoch,
            step_id=self.plan.step_id,
            num_tokens=[1] * len(drawn) if every_row_drew else [int(token >= 0) for token in drawn],
            token_ids=drawn if every_row_drew else [token for token in drawn if token >= 0],
            failures=[] if every_row_drew else self._failures(tokens),
        )
        outcome = self.draw()
        if outcome.logprobs is not None:
            self._add_logprobs(result, outcome.logprobs, drawn, rows)
        if outcome.candidates is not None:
            self._add_candidates(result, outcome.candidates)
        if self._prompt_logprobs is not None:
            self._prompt_logprobs.add_to(result, self._columns.plan_rows.tolist())
        return result

    def _failures(self, tokens: list[int]) -> list[RowFailure]:
        """Rows whose grammar cannot be followed, and rows that may draw nothing at all: neither can go on."""
        field_of_row = dict.fromkeys((each.row for each in self._bound_rows), "structured_outputs")
        errors = {each.row: each.grammar.error for each in self._bound_rows if each.grammar.error}
        for row, token in enumerate(tokens):
            if token == NO_TOKEN_LEFT:
                errors[row] = f"{field_of_row.setdefault(row, 'allowed_token_ids')}: {_NO_TOKEN_RULE}"
        return [
            RowFailure(int(self._columns.plan_rows[row]), error, field_of_row[row])
            for row, error in errors.items()
        ]

    def _add_candidates(self, result: StepResult, columns: HostCandidates) -> None:
        plan_rows, wanted = self._columns.plan_rows, self._columns.num_candidates
        rows = zip(columns.rows, columns.ids.tolist(), columns.logprobs.tolist(), strict=True)
        for row, ids, logprobs in rows:
            num_candidates = int(wanted[row])
            result.candidate_rows.append(int(plan_rows[row]))
            result.candidate_lens.append(num_candidates)
            result.candidate_ids += ids[:num_candidates]
            result.candidate_logprobs += logprobs[:num_candidates]

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
