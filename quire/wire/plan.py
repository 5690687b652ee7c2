"""A step plan: what changes on a worker in one step, and which slots advance.

A plan names slots and blocks, never tokens of running requests: those stay on the worker. Its size grows with what
changed in the step, not with the length of any context. Ragged facts are kept as flat columns because that is how
they travel.

A worker applies the parts of a plan in this order, before its forward pass:

1. `releases`     the slots are empty from here on (releasing an empty slot is no error)
2. `admissions`   the slots hold these sequences
3. `choices`      slots of beams become copies of their parents, block table included, and get their next token
4. `grants`       the blocks are appended to the slots' block tables
5. `copies`       block contents are copied and the tables point at the copy
6. `forks`        the child slots become copies of their parents, block table included

then it advances `scheduled_slots[i]` by `scheduled_tokens[i]` tokens. A row draws a token when it reaches the end of
the tokens its slot knows; a forked child draws one from its parent's logits in the same step, with its own
sequence index. A row of a beam search draws none: it brings the likeliest tokens, and waits there for its choice.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

NO_LOGPROBS = -1
"""`SlotAdmission.num_logprobs` of a request that asked for none."""


@dataclass(slots=True, kw_only=True)
class SlotAdmission:
    """Everything a worker must know of a sequence; travels once.

    Positions count from the first prompt token, so `min_len` and `max_len` include the prompt.
    """

    slot: int
    token_ids: Sequence[int]
    """Tokens the sequence has: its prompt and, after a preemption or on another worker, what it generated."""
    num_computed_tokens: int
    """How many of them already have keys and values in the granted blocks (a prefix-cache hit)."""
    prompt_len: int
    sequence_index: int
    temperature: float
    top_k: int
    """0 keeps all."""
    top_p: float
    min_p: float
    seed: int
    """Signed 64-bit."""
    num_logprobs: int
    """Alternatives per token; 0 reports the drawn token alone, `NO_LOGPROBS` nothing."""
    min_len: int
    """Stop tokens cannot be drawn while the sequence is shorter than this."""
    max_len: int
    """The sequence ends when it has this many tokens."""
    stop_token_ids: tuple[int, ...]
    """Tokens that end the sequence, end-of-sequence tokens included unless they are ignored."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    num_candidates: int = 0
    """For a beam: how many of the likeliest tokens it brings, under its temperature, instead of drawing one."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that can be drawn; empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that must not be drawn one after another; none is empty."""
    num_prompt_logprobs: int = NO_LOGPROBS
    """Alternatives per token of the prompt, from `num_computed_tokens` + 1 on, `NO_LOGPROBS` for no report."""

    @property
    def has_bias(self) -> bool:
        """Whether logits are changed whatever the sequence has seen, or after some tokens."""
        return bool(self.logit_bias or self.allowed_token_ids or self.bad_words)

    grammar: bytes = b""
    """A constraint on the output, a serialised quire.v1.StructuredOutputsParams; empty asks for none."""

    @property
    def has_penalties(self) -> bool:
        """Whether what the sequence has seen changes what it draws."""
        return (self.presence_penalty, self.frequency_penalty, self.repetition_penalty) != (0.0, 0.0, 1.0)


@dataclass(slots=True, kw_only=True)
class StepPlan:
    """One step of one worker group."""

    group_id: int
    epoch: int
    step_id: int
    traceparent: str = ""
    releases: list[int] = field(default_factory=list)
    """Slots."""
    admissions: list[SlotAdmission] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    """Flat triples (parent slot, slot, token). Parents are seen as they were before any choice; a slot that is its own
    parent only gets the token, and none that is another's parent is overwritten."""
    grants: "array[int]" = field(default_factory=lambda: array("i"))
    """Flat triples (slot, KV group, block), packed: hundreds of them for a cached prompt."""
    copies: list[int] = field(default_factory=list)
    """Flat quintuples (slot, KV group, index in the block table, source block, destination block)."""
    forks: list[int] = field(default_factory=list)
    """Flat triples (parent slot, child slot, sequence index of the child)."""
    scheduled_slots: list[int] = field(default_factory=list)
    scheduled_tokens: list[int] = field(default_factory=list)
    """Tokens to compute, beside `scheduled_slots`; at least 1."""

    def __post_init__(self) -> None:
        self.grants = array("i", self.grants)

    @property
    def num_rows(self) -> int:
        """Rows of the result: the scheduled slots, then the forked children."""
        return len(self.scheduled_slots) + len(self.forks) // 3

    @property
    def num_tokens(self) -> int:
        """Tokens that the forward pass computes."""
        return sum(self.scheduled_tokens)
