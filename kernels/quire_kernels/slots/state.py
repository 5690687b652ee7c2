"""Columns of device memory over the slots of a persistent batch, and those over the rows of one step.

A *slot* is a numbered place that keeps one running sequence from step to step. A step names slots, not tokens, so
that nothing which the device knows has to come from the host. Knows no request, no scheduler and no model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MAX_STOP_TOKENS = 512
"""Places for stop tokens in a slot: an API's own limit of 256, and the end-of-sequence tokens of a model."""

ADMISSION_WIDTH = 16
"""int32 fields of one admission record; see `reference.admit_slots`."""

CHANGES_HEADER_WIDTH = 3
"""int32 fields that end a column of changes; see `reference.enter_changes`."""

SCRATCH_BLOCK = 0
"""The KV block that takes the writes of padding and of ended slots."""


@dataclass(frozen=True, kw_only=True)
class SlotState:
    """One row per slot and a last one, the scratch slot, that padding rows name; it has always ended."""

    last_token: Tensor  # [N + 1] int32: the token that the next step embeds
    num_computed: Tensor  # [N + 1] int32: tokens whose keys and values are in the cache
    has_ended: Tensor  # [N + 1] int32: 1 once a stop token was drawn, or no token was left to draw
    block_tables: Tensor  # [N + 1, max_blocks] int32
    temperature: Tensor  # [N + 1] float32
    top_k: Tensor  # [N + 1] int32
    top_p: Tensor  # [N + 1] float32
    min_p: Tensor  # [N + 1] float32
    seed: Tensor  # [N + 1] int64
    sequence_index: Tensor  # [N + 1] int32
    repetition_penalty: Tensor  # [N + 1] float32
    frequency_penalty: Tensor  # [N + 1] float32
    presence_penalty: Tensor  # [N + 1] float32
    min_len: Tensor  # [N + 1] int32: stop tokens cannot be drawn at positions below it
    num_stop_tokens: Tensor  # [N + 1] int32
    stop_token_ids: Tensor  # [N + 1, MAX_STOP_TOKENS] int32

    @property
    def scratch_slot(self) -> int:
        """The row that padding names."""
        return self.last_token.shape[0] - 1


def allocate_slot_state(num_slots: int, max_blocks: int, device: torch.device) -> SlotState:
    """Empty slots, all of them ended."""
    num_rows = num_slots + 1

    def ints(*width: int) -> Tensor:
        return torch.zeros((num_rows, *width), dtype=torch.int32, device=device)

    def floats(value: float) -> Tensor:
        return torch.full((num_rows,), value, dtype=torch.float32, device=device)

    return SlotState(
        last_token=ints(),
        num_computed=ints(),
        has_ended=ints() + 1,
        block_tables=ints(max_blocks),
        temperature=floats(0.0),
        top_k=ints(),
        top_p=floats(1.0),
        min_p=floats(0.0),
        seed=torch.zeros(num_rows, dtype=torch.int64, device=device),
        sequence_index=ints(),
        repetition_penalty=floats(1.0),
        frequency_penalty=floats(0.0),
        presence_penalty=floats(0.0),
        min_len=ints(),
        num_stop_tokens=ints(),
        stop_token_ids=ints(MAX_STOP_TOKENS),
    )


@dataclass(frozen=True, kw_only=True)
class StepRows:
    """What the host says of one step: R rows, each a slot, with T tokens in all; padded to fixed sizes.

    Rows of padding name the scratch slot and have no token. A forked child has a row without tokens that draws from
    its parent's logits.
    """

    slots: Tensor  # [R] int32
    advances: Tensor  # [R] int32: tokens by which the slot moves on
    query_start_loc: Tensor  # [R + 1] int32
    logits_rows: Tensor  # [R] int32: token of the step whose logits the row draws from
    draws: Tensor  # [R] int32: 1 for rows that draw
    token_ids: Tensor  # [T] int32: -1 takes the slot's last token
    token_rows: Tensor  # [T] int32: row of each token, -1 for padding


@dataclass(frozen=True, kw_only=True)
class MaskedStops:
    """Logits in which stop tokens that come too early cannot be drawn, until `advance_slots` restores them."""

    logits: Tensor  # [R, vocab]
    seq_lens: Tensor  # [R] int32
    saved: Tensor | None  # [R, MAX_STOP_TOKENS]: what stood there; None where `logits` is a copy


@dataclass(frozen=True, kw_only=True)
class StepTensors:
    """What a forward pass and a sampler read; filled by `prepare_step`."""

    token_ids: Tensor  # [T] int64
    positions: Tensor  # [T] int64
    slot_mapping: Tensor  # [T] int64: block * block_size + offset
    seq_lens: Tensor  # [R] int32: length after this step, also the position of the token drawn
    block_tables: Tensor  # [R, max_blocks] int32
    temperature: Tensor  # [R] float32
    top_k: Tensor  # [R] int32
    top_p: Tensor  # [R] float32
    min_p: Tensor  # [R] float32
    seed: Tensor  # [R] int64
    sequence_index: Tensor  # [R] int32
