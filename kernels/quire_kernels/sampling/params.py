"""The sampling parameters of a batch as columns of device memory. Knows no request and no default."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from quire_kernels.sampling.bias import BiasTable
from quire_kernels.sampling.occurrence import OccurrenceTable

NO_TOKEN_LEFT = -2
"""Drawn by a row of which every token is forbidden. (What drew nothing for another reason shows as -1 elsewhere.)"""

_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seed": torch.int64,
    "sequence_index": torch.int32,
    "position": torch.int32,
}


@dataclass(frozen=True, kw_only=True)
class SamplingTensors:
    """One row per sequence that draws a token; every tensor is ``[S]`` and all live on the device of the
    logits.

    ``temperature`` 0 means greedy; ``top_k`` 0, ``top_p`` 1 and ``min_p`` 0 mean off. The noise of a row is
    a function of ``seed``, ``sequence_index`` (which of the request's sequences) and ``position`` (index, in
    prompt plus output, of the token being drawn) and of nothing else. Raises ``ValueError`` when a tensor
    has another dtype or length.
    """

    temperature: Tensor  # float32
    top_k: Tensor  # int32
    top_p: Tensor  # float32
    min_p: Tensor  # float32
    seed: Tensor  # int64
    sequence_index: Tensor  # int32
    position: Tensor  # int32

    def __post_init__(self) -> None:
        num_rows = self.temperature.shape[0]
        for field in fields(self):
            column: Tensor = getattr(self, field.name)
            if column.dtype != _DTYPES[field.name]:
                raise ValueError(f"{field.name} is {column.dtype}; it must be {_DTYPES[field.name]}")
            if column.shape != (num_rows,):
                raise ValueError(f"{field.name} has shape {tuple(column.shape)}; it must be ({num_rows},)")

    def __len__(self) -> int:
        return self.temperature.shape[0]

    def rows(self, index: Tensor) -> "SamplingTensors":
        """Return the rows selected by ``index`` (int64 ids or a boolean mask)."""
        return SamplingTensors(**{field.name: getattr(self, field.name)[index] for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """What changes the logits of a row's draw: biases, and what weighs down tokens that its sequence has seen. Read
    through the row's slot, each only where the slot has a row of it.
    """

    slots: Tensor  # [R] int32: the slot of each row that draws
    repetition: (
        Tensor  # [N] float32 by slot: divides (or, below zero, multiplies) logits of prompt and drawn tokens
    )
    frequency: Tensor  # [N] float32: taken off once per draw of the token
    presence: Tensor  # [N] float32: taken off once a token has been drawn
    occurrences: OccurrenceTable
    biases: BiasTable

    def __bool__(self) -> bool:
        """Whether any slot has anything."""
        return len(self.occurrences) > 0 or len(self.biases) > 0
