"""The rules of beam search: which continuations go on, which have ended, and when no better one can come.

They are those of `transformers.generate` (5.x): a hypothesis scores the sum of its log-probabilities over its number of
generated tokens, end-of-sequence token included, to the power of `length_penalty`; of the best candidates of all beams,
those that end count only among the first `beam_width`, and the rest of the list is there so that as many always go
on. Pure: knows no sequence, no block and no step.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Literal, NamedTuple

from quire_scheduler.core.request import FinishReason

Candidates = Iterable[tuple[int, float]]
"""The likeliest next tokens of one beam, each with its log-probability, best first."""

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamParams:
    """Resolved parameters of a beam search, beside those it shares with sampling."""

    beam_width: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False
    """True ends with the first `beam_width` hypotheses; False when the best beam, as long as it is now, scores no better than
    the worst of them; "never" when it could not even at its full length."""


class Choice(NamedTuple):
    """One beam of the next step."""

    parent: int
    """Place of the beam that it continues."""
    token: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A beam that has ended."""

    token_ids: list[int]
    cumulative_logprob: float
    score: float
    reason: FinishReason


class BeamSearch:
    """The scores of the beams of one request and the hypotheses found so far."""

    def __init__(self, params: BeamParams, eos_token_ids: frozenset[int]) -> None:
        self._params = params
        self._eos_token_ids = eos_token_ids
        self._scores = [0.0]
        self.hypotheses: list[Hypothesis] = []
        """The best ones, best first; `beam_width` of them once the search is over."""

    @property
    def num_candidates(self) -> int:
        """How many candidates each beam must bring: as many beams go on even if every end of sequence is among the best."""
        return num_candidates(self._params.beam_width, len(self._eos_token_ids))

    def choose(
        self, outputs: Sequence[Sequence[int]], candidates: Sequence[Candidates], max_tokens: int
    ) -> list[Choice]:
        """The beams of the next step, best first; none when the search is over, at `max_tokens` at the latest.

        `outputs` and `candidates` are by place: at first one, then those of the last choice in its order.
        """
        width = self._params.beam_width
        best = self._best(candidates)
        output_len = len(outputs[0]) + 1
        is_last = output_len >= max_tokens
        going_on = [each for each in best if not is_last and each[2] not in self._eos_token_ids][:width]
        was_full = len(self.hypotheses) == width
        if not (was_full and self._params.early_stopping is True):
            ended = [each for each in best[:width] if is_last or each[2] in self._eos_token_ids]
            self._keep([self._hypothesis(outputs, each) for each in ended])
        if not going_on or self._is_over(going_on[0][0], output_len, max_tokens):
            return []
        self._scores = [score for score, _parent, _token in going_on]
        return [Choice(parent, token) for _score, parent, token in going_on]

    def _best(self, candidates: Sequence[Candidates]) -> list[tuple[float, int, int]]:
        """(score, place of the parent, token) of the best candidates of all beams.

        Rows are merged no further than that: wide searches bring far more than is chosen from.
        """
        rows = [
            _scored(score, parent, row)
            for parent, (score, row) in enumerate(zip(self._scores, candidates, strict=True))
        ]
        return list(islice(merge(*rows, key=lambda each: -each[0]), self.num_candidates))

    def _hypothesis(self, outputs: Sequence[Sequence[int]], ended: tuple[float, int, int]) -> Hypothesis:
        logprob, parent, token = ended
        token_ids = [*outputs[parent], token]
        reason = FinishReason.STOP if token in self._eos_token_ids else FinishReason.LENGTH
        return Hypothesis(token_ids, logprob, self._score(logprob, len(token_ids)), reason)

    def _keep(self, new: list[Hypothesis]) -> None:
        merged = sorted([*self.hypotheses, *new], key=lambda each: -each.score)
        self.hypotheses = merged[: self._params.beam_width]

    def _is_over(self, best_logprob: float, output_len: int, max_tokens: int) -> bool:
        if len(self.hypotheses) < self._params.beam_width:
            return False
        if self._params.early_stopping is True:
            return True
        hopes = self._params.early_stopping == "never" and self._params.length_penalty > 0
        hoped = self._score(best_logprob, max_tokens if hopes else output_len)
        return hoped <= self.hypotheses[-1].score

    def _score(self, logprob: float, output_len: int) -> float:
        try:
            divisor = float(output_len) ** self._params.length_penalty
        except OverflowError:
            divisor = math.inf
        return logprob / divisor if divisor else logprob * math.inf if logprob else 0.0


def _scored(score: float, parent: int, row: Candidates) -> Iterable[tuple[float, int, int]]:
    return ((score + logprob, parent, token) for token, logprob in row)


def num_candidates(beam_width: int, num_eos_tokens: int) -> int:
    """How many of its likeliest tokens each beam brings to a choice."""
    return max(2, 1 + num_eos_tokens) * beam_width
