"""What the core tells the owners of requests: columns, one set per owner and drain, ready for a TokenFrame.

Row i of the row columns is one sequence that got tokens or ended. Columns instead of objects, because at a thousand
running sequences an object per token would cost more than scheduling it.
"""

from dataclasses import dataclass, field, fields
from enum import IntEnum

from quire_scheduler.core.request import FinishReason, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFailure:
    """The last event of a request that was not served to its end."""

    handle: int
    code: int
    """Canonical gRPC status code."""
    message: str
    field: str = ""
    retry_after_ms: int = 0


@dataclass(slots=True)
class OwnerEvents:
    """Everything new for one owner since the last drain; the names are those of quire.v1.TokenFrame."""

    handles: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    first_token_indexes: list[int] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finished_rows: list[int] = field(default_factory=list)
    finish_reasons: list[FinishReason] = field(default_factory=list)
    stop_token_ids_plus_one: list[int] = field(default_factory=list)
    cached_handles: list[int] = field(default_factory=list)
    cached_tokens: list[int] = field(default_factory=list)
    logprob_rows: list[int] = field(default_factory=list)
    """Rows with log-probabilities, beside `logprob_entries`."""
    logprob_entries: list[int] = field(default_factory=list)
    """Entries per token of the row."""
    logprob_ids: list[int] = field(default_factory=list)
    logprob_values: list[float] = field(default_factory=list)
    logprob_ranks: list[int] = field(default_factory=list)
    beam_rows: list[int] = field(default_factory=list)
    """Rows that each bring a whole hypothesis of a beam search, beside the two columns below."""
    beam_logprobs: list[float] = field(default_factory=list)
    beam_scores: list[float] = field(default_factory=list)
    prompt_handles: list[int] = field(default_factory=list)
    """Stretches of prompts with log-probabilities; see quire.v1.PromptLogprobColumns."""
    prompt_first_positions: list[int] = field(default_factory=list)
    prompt_num_tokens: list[int] = field(default_factory=list)
    prompt_entries: list[int] = field(default_factory=list)
    prompt_logprob_ids: list[int] = field(default_factory=list)
    prompt_logprob_values: list[float] = field(default_factory=list)
    prompt_logprob_ranks: list[int] = field(default_factory=list)
    failures: list[RequestFailure] = field(default_factory=list)

    def extend(self, later: "OwnerEvents") -> None:
        """Appends what happened later: for an owner that has not taken the earlier events yet."""
        num_rows = len(self.handles)
        later.finished_rows = [row + num_rows for row in later.finished_rows]
        later.logprob_rows = [row + num_rows for row in later.logprob_rows]
        later.beam_rows = [row + num_rows for row in later.beam_rows]
        for column in fields(OwnerEvents):
            getattr(self, column.name).extend(getattr(later, column.name))

    def entries_per_token(self) -> list[int]:
        """The row column of LogprobColumns; empty when no row has log-probabilities."""
        if not self.logprob_rows:
            return []
        column = [0] * len(self.handles)
        for row, num_entries in zip(self.logprob_rows, self.logprob_entries, strict=True):
            column[row] = num_entries
        return column


class MilestoneKind(IntEnum):
    """What happened to a traced request."""

    SCHEDULED = 1
    PREFILL_CHUNK = 2
    FIRST_TOKEN = 3
    FINISHED = 4


@dataclass(frozen=True, slots=True)
class Milestone:
    """A moment in a traced request's life, for telemetry."""

    kind: MilestoneKind
    request: Request
    num_tokens: int
    """Cached tokens when SCHEDULED, computed tokens of a PREFILL_CHUNK, generated tokens when FINISHED."""
    now: float
    """The caller's clock."""
