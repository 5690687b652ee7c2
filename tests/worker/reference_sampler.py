"""The sampler as one would write it on a blackboard: whole rows, float64, one token at a time, nothing shared with Quire.

Knows `SamplingParams` and logits; the order of what is done to them is that of the field.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quire.sampling_params import SamplingParams

Row = NDArray[np.float64]
_WORD = 0xFFFFFFFF


class ReferenceSampler:
    """Draws for one sequence of one request."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        *,
        eos_token_ids: Sequence[int],
        bad_words: Sequence[Sequence[int]] = (),
        index: int = 0,
    ) -> None:
        self._params = params
        self._prompt = list(prompt)
        self._bad_words = bad_words
        self._index = index
        self.stop_token_ids = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}

    def scores(self, logits: Row, drawn: Sequence[int]) -> Row:
        """What the next token is the argmax of, after `drawn`; minus infinity where it cannot be."""
        row = logits.astype(np.float64).copy()
        self._forbid(row, drawn)
        for token, bias in (self._params.logit_bias or {}).items():
            row[token] += bias
        self._penalise(row, drawn)
        if self._params.temperature == 0:
            return row
        row /= self._params.temperature
        self._mask(row)
        position = len(self._prompt) + len(drawn)
        seed = self._params.seed or 0
        return row + [gumbel(seed, self._index, position, token) for token in range(len(row))]

    def _forbid(self, row: Row, drawn: Sequence[int]) -> None:
        if self._params.allowed_token_ids is not None:
            row[[token for token in range(len(row)) if token not in self._params.allowed_token_ids]] = -np.inf
        for *before, last in self._bad_words:
            if not before or list(drawn[-len(before) :]) == before:
                row[last] = -np.inf
        if len(drawn) < self._params.min_tokens:
            row[list(self.stop_token_ids)] = -np.inf

    def _penalise(self, row: Row, drawn: Sequence[int]) -> None:
        repetition = self._params.repetition_penalty or 1.0
        for token in {*self._prompt, *drawn}:
            row[token] = row[token] / repetition if row[token] > 0 else row[token] * repetition
        for token in set(drawn):
            row[token] -= self._params.frequency_penalty * drawn.count(token)
            row[token] -= self._params.presence_penalty

    def _mask(self, row: Row) -> None:
        params = self._params
        if params.min_p:
            row[row < row.max() + np.log(params.min_p)] = -np.inf
        if params.top_k and params.top_k > 0:
            row[row < np.sort(row)[-min(params.top_k, len(row))]] = -np.inf
        if params.top_p is not None and params.top_p < 1:
            probability = np.exp(row - row.max())
            probability /= probability.sum()
            likelier = np.array([probability[probability > each].sum() for each in probability])
            row[likelier >= params.top_p] = -np.inf


def gumbel(seed: int, index: int, position: int, token: int) -> float:
    """The noise of one token."""
    counter = (token >> 2, position, index, 0)
    word = philox4x32(counter, (seed & _WORD, (seed >> 32) & _WORD))[token & 3]
    return float(-np.log(-np.log((word + 0.5) / 2.0**32)))


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Ten rounds of Philox (Salmon et al., 2011), in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first, second = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (second >> 32) ^ c1 ^ k0, second & _WORD
        c2, c3 = (first >> 32) ^ c3 ^ k1, first & _WORD
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3
