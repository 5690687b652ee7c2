"""A step result: the tokens that one plan brought, row by row."""

from dataclasses import dataclass, field


@dataclass(slots=True, kw_only=True)
class StepResult:
    """What rank 0 of a group reports for one plan.

    Row i answers row i of the plan (see `StepPlan.num_rows`). A row brings no token while its prompt is not finished,
    and none once its slot has ended on the worker.
    """

    group_id: int
    epoch: int
    step_id: int
    num_tokens: list[int]
    """Tokens per row; today 0 or 1, more under speculation."""
    token_ids: list[int]
    """The rows' tokens, one after another."""
    logprob_lens: list[int] = field(default_factory=list)
    """Log-probability entries per token of `token_ids`, 0 for rows that asked for none; empty when no row asked."""
    logprob_ids: list[int] = field(default_factory=list)
    """Per token the drawn id first, then the likeliest, best first."""
    logprob_values: list[float] = field(default_factory=list)
    """Natural log-probabilities of the raw logits, beside `logprob_ids`."""
    logprob_ranks: list[int] = field(default_factory=list)
    """Ranks in the vocabulary, beside `logprob_ids`; 1 is the likeliest."""
    prompt_rows: list[int] = field(default_factory=list)
    """Flat quadruples (row, position of the first prompt token reported, tokens reported, entries per token)."""
    prompt_logprob_ids: list[int] = field(default_factory=list)
    """Per token of a prompt its own id first, then the likeliest in its place, best first."""
    prompt_logprob_values: list[float] = field(default_factory=list)
    """Natural log-probabilities of the raw logits, beside `prompt_logprob_ids`."""
    prompt_logprob_ranks: list[int] = field(default_factory=list)
    """Ranks in the vocabulary, beside `prompt_logprob_ids`."""
    failures: list["RowFailure"] = field(default_factory=list)
    """Rows whose requests cannot go on; the others can."""
    candidate_rows: list[int] = field(default_factory=list)
    """Rows of beams, which bring no token but candidates for their next one."""
    candidate_lens: list[int] = field(default_factory=list)
    """Candidates per row, beside `candidate_rows`."""
    candidate_ids: list[int] = field(default_factory=list)
    """The rows' candidates, best first, one row after another."""
    candidate_logprobs: list[float] = field(default_factory=list)
    """Natural log-probabilities under the beam's temperature, beside `candidate_ids`."""


@dataclass(frozen=True, slots=True)
class RowFailure:
    """Why the request of one row must end; such a row brings no token."""

    row: int
    message: str
    field: str = ""
    """Of the request, that is at fault."""


@dataclass(slots=True, kw_only=True)
class StepRefusal:
    """A worker's word that it cannot execute a plan. The scheduler resets the group."""

    group_id: int
    epoch: int
    step_id: int
    error: str


@dataclass(slots=True, kw_only=True)
class WorkerReady:
    """A worker's word that it is connected, holds nothing and waits for step 0 of `epoch`."""

    group_id: int
    epoch: int
