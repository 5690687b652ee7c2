"""The grammars of the sequences in the slots: they follow the tokens that arrive on the host, and say what may be drawn.

A step's masks need the tokens of the steps before it, and no more: forward passes need none of this. A sequence that
cannot be followed any further keeps its error, which is reported with its rows; its step goes on. Knows no tensor and
no device.
"""

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from numpy.typing import NDArray

from quire.grammar import GrammarError, check_matcher
from quire.wire.plan import SlotAdmission
from quire_worker.grammar_compiler import GrammarCompiler
from quire_worker.slot_table import SlotChanges
from quire_worker.step_columns import StepColumns

_COMPILE_TIMEOUT_S = 5.0
"""The front door compiles a grammar before it lets it in; one that takes so long here was never there."""


@dataclass(slots=True, eq=False)
class SlotGrammar:
    """One sequence's grammar."""

    slot: int
    stop_token_ids: frozenset[int]
    has_min_len: bool
    compiling: "Future[LLMatcher] | None" = None
    parent: "SlotGrammar | None" = None
    """Of a forked sequence that has not followed a token of its own: whose tokens it shares."""
    matcher: LLMatcher | None = None
    num_awaited: int = 0
    """Draws that the host has not seen."""
    has_ended: bool = False
    error: str = ""

    def follow(self, token: int) -> None:
        """Takes what one draw brought, -1 for nothing."""
        self.num_awaited -= 1
        if token < 0 or self.error or self.matcher is None:
            return
        self.has_ended = token in self.stop_token_ids
        if not self.matcher.consume_token(token):
            self.fail(self.matcher)

    def fail(self, matcher: LLMatcher) -> None:
        """Keeps what is wrong with the matcher: its grammar became too complex, or other masks left no token of it."""
        try:
            check_matcher(matcher)
        except GrammarError as error:
            self.error = f"structured_outputs: the text cannot go on: {error}"


@dataclass(frozen=True, slots=True)
class GrammarRow:
    """A row of a step that draws under a grammar."""

    row: int
    grammar: SlotGrammar


@dataclass(slots=True)
class TokenMasks:
    """What the rows of a step may draw."""

    rows: list[int]
    bitmask: NDArray[np.int32]  # [len(rows), words]
    forced_ends: list[int] = field(default_factory=list)
    """Slots that can do nothing but end, whatever their least length."""


class SlotGrammars:
    """Grammars by slot."""

    def __init__(self, compiler: GrammarCompiler, vocab_size: int) -> None:
        self._compiler = compiler
        self._vocab_size = vocab_size
        self._executor = LLExecutor()
        self._by_slot: dict[int, SlotGrammar] = {}

    def clear(self) -> None:
        """Forgets every sequence."""
        self._by_slot.clear()

    def enter(self, changes: SlotChanges, columns: StepColumns) -> list[GrammarRow]:
        """Follows a plan's changes; the rows of its step that draw under a grammar."""
        for slot in changes.releases:
            self._by_slot.pop(slot, None)
        for admission in changes.admissions:
            if admission.grammar:
                self._by_slot[admission.slot] = self._admitted(admission)
        for parent, child, _index in changes.forks:
            if parent in self._by_slot:
                self._by_slot[child] = _forked(self._by_slot[parent], child)
        if not self._by_slot:
            return []
        slots, draws = columns.slots.tolist(), columns.draws.tolist()
        return [
            GrammarRow(row, self._by_slot[slot])
            for row, slot in enumerate(slots)
            if draws[row] and slot in self._by_slot
        ]

    def masks(self, rows: Iterable[GrammarRow]) -> TokenMasks:
        """What the rows may draw, every earlier token of theirs having arrived; waits for what is being compiled.

        A row that has failed or ended is left out: nobody reads what it draws.
        """
        live = [each for each in rows if _is_live(each.grammar)]
        masks = TokenMasks([each.row for each in live], allocate_token_bitmask(len(live), self._vocab_size))
        matchers = [each.grammar.matcher for each in live]
        jobs = [(matcher, at) for at, matcher in enumerate(matchers) if matcher is not None]
        if jobs:
            fill_next_token_bitmask_par(self._executor, jobs, masks.bitmask)
        for each, matcher in zip(live, matchers, strict=True):
            if matcher is not None:
                self._look_at(each.grammar, matcher, masks)
        return masks

    def _admitted(self, admission: SlotAdmission) -> SlotGrammar:
        outputs = admission.token_ids[admission.prompt_len :]
        return SlotGrammar(
            slot=admission.slot,
            stop_token_ids=frozenset(admission.stop_token_ids),
            has_min_len=admission.min_len > admission.prompt_len,
            compiling=self._compiler.submit(admission.grammar, outputs),
        )

    def _look_at(self, grammar: SlotGrammar, matcher: LLMatcher, masks: TokenMasks) -> None:
        if not matcher.is_stopped():
            return
        grammar.fail(matcher)
        if grammar.has_min_len:
            grammar.has_min_len = False
            masks.forced_ends.append(grammar.slot)


def _forked(parent: SlotGrammar, child: int) -> SlotGrammar:
    return SlotGrammar(child, parent.stop_token_ids, parent.has_min_len, parent=parent)


def _is_live(grammar: SlotGrammar) -> bool:
    """Makes sure of the grammar's matcher, unless it failed."""
    if grammar.matcher is None and not grammar.error:
        try:
            grammar.matcher = _first_matcher(grammar)
        except TimeoutError:
            grammar.error = f"structured_outputs: the grammar did not compile within {_COMPILE_TIMEOUT_S} s"
        except GrammarError as error:
            grammar.error = f"structured_outputs: {error}"
        grammar.compiling = grammar.parent = None
    return not grammar.error and not grammar.has_ended


def _first_matcher(grammar: SlotGrammar) -> LLMatcher:
    if grammar.compiling is not None:
        return grammar.compiling.result(_COMPILE_TIMEOUT_S)
    parent = grammar.parent
    if parent is None or parent.matcher is None:
        raise GrammarError((parent.error if parent else "").removeprefix("structured_outputs: "))
    return parent.matcher.deep_copy()
