"""Log-probabilities of prompt tokens of one step, on their way from the device into its result. Knows no slot."""

from collections.abc import Sequence

import numpy as np
import torch
from quire_kernels import token_logprobs
from torch import Tensor

from quire.wire.result import StepResult
from quire_worker.step_columns import PromptStretch

_ROWS_AT_ONCE = 32
"""Each takes some 20 bytes per token of the vocabulary while it is measured."""


def tokens_before(stretches: Sequence[PromptStretch]) -> np.ndarray:
    """The tokens of the step after which the stretches' tokens come, int32."""
    return np.concatenate(
        [np.arange(each.first_token, each.first_token + len(each.token_ids)) for each in stretches]
    ).astype(np.int32)


class HostPromptLogprobs:
    """Columns over the tokens of all stretches; complete once the device has reached the point where it was made."""

    def __init__(self, stretches: Sequence[PromptStretch], logits: Tensor) -> None:
        """`logits` `[P, vocab]` are those before each token of the stretches, in order."""
        self._stretches = stretches
        num_top = max(each.num_alternatives for each in stretches)
        token_ids = torch.from_numpy(np.concatenate([each.token_ids for each in stretches]))
        targets = token_ids.to(logits.device, non_blocking=True)
        parts = [
            token_logprobs(logits[at : at + _ROWS_AT_ONCE], targets[at : at + _ROWS_AT_ONCE], num_top)
            for at in range(0, len(targets), _ROWS_AT_ONCE)
        ]
        self._columns = [_to_host_async(torch.cat(column)) for column in zip(*parts, strict=True)]

    def add_to(self, result: StepResult, plan_rows: Sequence[int]) -> None:
        """Fills the prompt columns of a result; `plan_rows` gives the plan's row of each row of the step."""
        logprobs, ranks, top_ids, top_logprobs = (column.tolist() for column in self._columns)
        at = 0
        for stretch in self._stretches:
            width = stretch.num_alternatives
            num_tokens = len(stretch.token_ids)
            row = int(plan_rows[stretch.row])
            result.prompt_rows += (row, stretch.first_position, num_tokens, 1 + width)
            for token in stretch.token_ids.tolist():
                result.prompt_logprob_ids += (token, *top_ids[at][:width])
                result.prompt_logprob_values += (logprobs[at], *top_logprobs[at][:width])
                result.prompt_logprob_ranks += (ranks[at], *range(1, width + 1))
                at += 1


def _to_host_async(column: Tensor) -> Tensor:
    if not column.is_cuda:
        return column
    host = torch.empty(column.shape, dtype=column.dtype, pin_memory=True)
    return host.copy_(column, non_blocking=True)
