"""The rows of one step as columns: what the device is told of it beside the changes to its slots."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStretch:
    """Tokens of one row's prompt whose log-probabilities are wanted."""

    row: int
    first_position: int
    """In the prompt, of the first of them."""
    first_token: int
    """In the step: the token after which the first of them comes."""
    token_ids: Ints
    num_alternatives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepColumns:
    """The rows of one step: R rows with T tokens. Forked children follow the scheduled rows and have no token.

    Rows of a step that only decodes are ordered by length, longest first: attention takes them in this order, and the
    short ones fill the end, when few multiprocessors still have work.
    """

    slots: Ints  # [R]
    advances: Ints  # [R]: tokens by which each slot moves on; a child moves like its parent
    query_start_loc: Ints  # [R + 1]
    logits_rows: Ints  # [R]: token whose logits the row draws from
    draws: NDArray[np.bool_]  # [R]
    token_ids: Ints  # [T]: -1 where the slot's last token on the device is meant
    token_rows: Ints  # [T]
    num_logprobs: Ints  # [R]
    num_candidates: Ints  # [R]: of rows that bring candidates instead of drawing
    plan_rows: Ints  # [R]: the row of the plan that each row answers
    prompt_stretches: tuple[PromptStretch, ...] = ()
    max_seq_len: int
    """Length of the longest sequence after the step."""
    is_decode: bool
    """Whether row i has exactly token i."""

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.slots)

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.token_ids)
