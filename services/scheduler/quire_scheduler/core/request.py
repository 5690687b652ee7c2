"""What the core knows of a request and of its sequences.

A request is one prompt; a sequence is one continuation of it and the unit that is scheduled, preempted and ended.
Sequences of one request share blocks while their tokens are equal (see `kv_manager`). Nothing here decides anything.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, NewType, TypeAlias

if TYPE_CHECKING:
    from quire_scheduler.core.beam_group import BeamGroup
    from quire_scheduler.core.beam_search import BeamParams
    from quire_scheduler.core.group import Group
    from quire_scheduler.core.name_table import NamedBlock

BlockId = NewType("BlockId", int)
"""A KV block of one worker group, from 1; block 0 is scratch and never granted."""

SlotId = NewType("SlotId", int)
"""A place in a worker's persistent batch, from 0."""

OwnerId = NewType("OwnerId", int)
"""Whoever added a request and gets its events: an attached peer or a token-level client."""

TokenIds: TypeAlias = "array[int]"
"""Token ids side by side, four bytes each.

As a list, a token would be an object of its own: nine times the memory, all of it walked by full garbage collections,
and a prompt's worth of it between the objects that a step visits, which made steps slower the longer contexts were.
"""

NO_SLOT = SlotId(-1)


_MAX_FRESH_BLOCKS = 16
"""Blocks that wait beside a sequence's table before they are moved into it together."""


def token_ids_of(token_ids: Iterable[int]) -> TokenIds:
    """The ids, packed."""
    return array("I", token_ids)


class FinishReason(IntEnum):
    """Why a sequence ended; the numbers are those of quire.v1.FinishReason."""

    STOP = 1
    LENGTH = 2
    ABORT = 3
    ERROR = 4


class Status(IntEnum):
    """Where a sequence stands."""

    WAITING = 0
    RUNNING = 1
    FINISHED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Resolved sampling parameters: no field is left to a default."""

    max_tokens: int
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    """Every token that ends a sequence, end-of-sequence tokens included unless they are ignored."""
    eos_token_ids: frozenset[int] = frozenset()
    """Those of `stop_token_ids` that are ends of sequence and so are not reported as a stop reason."""
    grammar: bytes = b""
    """A constraint on the output that workers understand and nobody here; empty is none."""
    num_logprobs: int = -1
    """Alternatives per token; -1 asks for no log-probabilities."""
    num_prompt_logprobs: int = -1
    """Alternatives per token of the prompt; -1 asks for none of its log-probabilities."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit)."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that can be drawn; empty allows all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that must not be drawn one after another."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """One prompt, as its owner handed it in, and the counters that outlive any single run of it."""

    owner: OwnerId
    handle: int
    request_id: str
    prompt_token_ids: TokenIds
    sampling: Sampling
    tenant: str = ""
    priority: int = 0
    resumed: tuple[tuple[int, list[int]], ...] = ()
    """(sequence index, tokens so far) of each sequence that still lives; empty for a new request."""
    beam_params: "BeamParams | None" = None
    """What makes it a beam search, of `sampling.n` beams."""
    cache_salt: bytes = b""
    """Prefixes are shared only among requests of equal salt (tenant, adapter)."""
    traced: bool = False
    """Whether milestones are recorded for telemetry."""

    arrival: int = -1
    """Order of arrival, given by the core."""
    live_sequences: "dict[int, Sequence | None]" = field(default_factory=dict)
    """By index; None for a sequence that will be forked from the leader once the prompt is computed."""
    beams: "BeamGroup | None" = None
    """The sequences of a beam search, which are scheduled together."""
    num_failures: int = 0
    """Failed steps in a row that this request was part of without a token in between."""
    num_tokens_at_failure: int = -1
    num_ended_tokens: int = 0
    """Confirmed tokens of sequences that have ended."""
    reported_cached_tokens: bool = False
    num_reported_prompt_tokens: int = 1
    """Tokens of the prompt whose log-probabilities its owner has, where they were asked for; the first has none."""
    has_answered: bool = False
    """Whether a traced request has had its first token here, resumed or not."""

    def __post_init__(self) -> None:
        self.prompt_token_ids = token_ids_of(self.prompt_token_ids)

    @property
    def owes_prompt_logprobs(self) -> bool:
        """Whether log-probabilities of its prompt are still to be computed: no cached block may stand for its tokens."""
        return self.sampling.num_prompt_logprobs >= 0 and self.num_reported_prompt_tokens < len(
            self.prompt_token_ids
        )

    @property
    def num_generated_tokens(self) -> int:
        """Confirmed tokens of all its sequences."""
        return self.num_ended_tokens + sum(
            len(sequence.output_token_ids) for sequence in self.live_sequences.values() if sequence
        )


class Sequence:
    """One continuation of a prompt.

    `num_scheduled` counts tokens whose keys and values are planned, `num_computed` those that are confirmed, and
    `num_known` the tokens that exist: prompt, confirmed output, and draws still in flight. A plan may advance the
    sequence up to `num_known`, and reaching it draws the next token.
    """

    __slots__ = (
        "_fresh_blocks",
        "_table",
        "fork_indexes",
        "fork_slots",
        "group",
        "index",
        "last_named",
        "max_len",
        "next_offer_len",
        "num_computed",
        "num_in_flight",
        "num_known",
        "num_prompt",
        "num_scheduled",
        "order",
        "output_token_ids",
        "request",
        "room",
        "slot",
        "status",
        "stop_token_ids",
    )

    def __init__(self, request: Request, index: int, output_token_ids: Iterable[int] = ()) -> None:
        self.request = request
        self.index = index
        self.output_token_ids = token_ids_of(output_token_ids)
        self.num_prompt = len(request.prompt_token_ids)
        self.max_len = self.num_prompt + request.sampling.max_tokens if request.beam_params is None else 0
        """Length at which it ends, so that it is never planned to pass it; 0 for a beam, which waits at every length."""
        self.stop_token_ids = frozenset(request.sampling.stop_token_ids)
        self.order: tuple[int, ...] = ()
        self.status = Status.WAITING
        self.group: Group | None = None
        """Where it runs."""
        self.slot = NO_SLOT
        self._table: list[BlockId] = []
        self._fresh_blocks: list[BlockId] = []
        self.room = 0
        """First position that cannot be written without a grant or a copy."""
        self.num_known = self.num_prompt + len(self.output_token_ids)
        self.num_scheduled = 0
        self.num_computed = 0
        self.num_in_flight = 0
        """Rows of this sequence in steps without a result yet."""
        self.last_named: NamedBlock = BlockId(0), b""
        """The block that the prefix cache knows by the last content offered: this sequence's own, or the first of equal ones."""
        self.next_offer_len = 0
        """Computed tokens at which the next block of its table is full and offered to the prefix cache."""
        self.fork_indexes: list[int] = []
        """Sequences to be forked from this one when its prompt is computed."""
        self.fork_slots: list[SlotId] = []
        """Slots held for them."""

    @property
    def block_table(self) -> list[BlockId]:
        """Its blocks, by position."""
        if self._fresh_blocks:
            self._gather_blocks()
        return self._table

    @block_table.setter
    def block_table(self, blocks: list[BlockId]) -> None:
        self._table = blocks
        self._fresh_blocks = []

    @property
    def num_blocks(self) -> int:
        """Blocks of the table."""
        return len(self._table) + len(self._fresh_blocks)

    def append_block(self, block: BlockId) -> None:
        """Lengthens the table. A long one lies on a page of its own, so it is gone to once in a while only."""
        if len(self._fresh_blocks) >= _MAX_FRESH_BLOCKS:
            self._gather_blocks()
        self._fresh_blocks.append(block)

    def block_at(self, index: int) -> BlockId:
        """A block of the table, without gathering it."""
        offset = index - len(self._table)
        return self._fresh_blocks[offset] if offset >= 0 else self._table[index]

    @property
    def num_confirmed(self) -> int:
        """Tokens that the host has: prompt and confirmed output."""
        return self.num_prompt + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> TokenIds:
        """Confirmed tokens at positions `start` to `stop`."""
        split = self.num_prompt
        if stop <= split:
            return self.request.prompt_token_ids[start:stop]
        if start >= split:
            return self.output_token_ids[start - split : stop - split]
        return self.request.prompt_token_ids[start:] + self.output_token_ids[: stop - split]

    def start(self, stop: int) -> memoryview:
        """The confirmed tokens before `stop`, where they lie unless some are output: a prompt is looked up as often as it
        waits, and may be long."""
        if stop <= self.num_prompt:
            return memoryview(self.request.prompt_token_ids)[:stop]
        return memoryview(self.tokens(0, stop))

    def _gather_blocks(self) -> None:
        self._table += self._fresh_blocks
        self._fresh_blocks.clear()

    def __repr__(self) -> str:
        return f"Sequence({self.request.request_id}/{self.index} {self.status.name})"
