"""Slot updates in torch, in place: the truth for the kernels, and the implementation on a CPU."""

import torch
from torch import Tensor

from quire_kernels.slots.state import (
    ADMISSION_WIDTH,
    CHANGES_HEADER_WIDTH,
    SCRATCH_BLOCK,
    MaskedStops,
    SlotState,
    StepRows,
    StepTensors,
)

# Fields of an admission record.
_INT_FIELDS = ("num_computed", "top_k", "sequence_index", "min_len", "num_stop_tokens")
_FLOAT_FIELDS = ("temperature", "top_p", "min_p")
_PENALTY_FIELDS = ("repetition_penalty", "frequency_penalty", "presence_penalty")
_FIRST_INT, _FIRST_FLOAT, _FIRST_STOP, _SEED, _FIRST_PENALTY = 1, 6, 9, 10, 12


def admit_slots(state: SlotState, records: Tensor, stop_token_ids: Tensor) -> None:
    """Fill the slots that ``records [A, ADMISSION_WIDTH]`` int32 name, which begin without a block.

    A record is: slot, num_computed, top_k, sequence_index, min_len, num_stop_tokens, the bits of temperature, top_p
    and min_p as float32, where in ``stop_token_ids`` its stop tokens start, the low and high half of the
    seed, and the bits of the repetition, frequency and presence penalty.
    """
    if records.shape[0] == 0:
        return
    slots = records[:, 0].long()
    for at, name in enumerate(_INT_FIELDS, _FIRST_INT):
        getattr(state, name)[slots] = records[:, at]
    floats = (*enumerate(_FLOAT_FIELDS, _FIRST_FLOAT), *enumerate(_PENALTY_FIELDS, _FIRST_PENALTY))
    for at, name in floats:
        getattr(state, name)[slots] = records[:, at].contiguous().view(torch.float32)
    state.seed[slots] = records[:, _SEED : _SEED + 2].clone().view(torch.int64).squeeze(1)
    state.has_ended[slots] = 0
    for slot, num_stops, start in records[:, [0, 5, _FIRST_STOP]].tolist():
        state.stop_token_ids[slot, :num_stops] = stop_token_ids[start : start + num_stops]


def grant_blocks(state: SlotState, grants: Tensor) -> None:
    """Enter the blocks of ``grants [G, 3]`` int32, triples (slot, index in its table, block)."""
    if grants.shape[0]:
        slot, index, block = grants.long().unbind(1)
        state.block_tables[slot, index] = block.int()


def enter_changes(state: SlotState, changes: Tensor) -> None:
    """Admit slots and grant blocks, both as told at the end of ``changes [C]`` int32.

    From the end on backwards there are: the number of admissions, that of grants, that of stop tokens; the records of
    the admissions, the grants, no two of them for one place, and the stop tokens. What comes before is not read,
    so that a column of fixed place and size can tell any number.
    """
    num_stops, num_grants, num_admissions = changes[-CHANGES_HEADER_WIDTH:].tolist()
    sizes = (num_stops, 3 * num_grants, num_admissions * ADMISSION_WIDTH, CHANGES_HEADER_WIDTH)
    stops, grants, records, _header = changes[len(changes) - sum(sizes) :].split(sizes)
    admit_slots(state, records.view(-1, ADMISSION_WIDTH), stops)
    grant_blocks(state, grants.view(-1, 3))


def fork_slots(state: SlotState, forks: Tensor) -> None:
    """Make the children of ``forks [F, 3]`` int32, triples (parent, child, index of the child), like their parents."""
    for parent, child, index in forks.tolist():
        for column in vars(state).values():
            column[child] = column[parent]
        state.sequence_index[child] = index


def prepare_step(state: SlotState, rows: StepRows, block_size: int, out: StepTensors) -> None:
    """Fill ``out`` with what the step's forward pass and sampler read.

    Tokens of ended slots, and those of padding, are written to the scratch block.
    """
    slots, token_rows = rows.slots.long(), rows.token_rows.long()
    is_padding = token_rows < 0
    token_rows = token_rows.clamp(min=0)
    token_slots = slots[token_rows].masked_fill(is_padding, state.scratch_slot)
    offset = torch.arange(len(token_rows), device=slots.device) - rows.query_start_loc.long()[token_rows]
    positions = (state.num_computed.long()[token_slots] + offset).masked_fill(is_padding, 0)
    blocks = state.block_tables[token_slots, positions // block_size].long()
    blocks.masked_fill_(state.has_ended[token_slots] != 0, SCRATCH_BLOCK)
    given = rows.token_ids.long()
    out.token_ids.copy_(
        torch.where(given >= 0, given, state.last_token[token_slots]).masked_fill(is_padding, 0)
    )
    out.positions.copy_(positions)
    out.slot_mapping.copy_(blocks * block_size + positions % block_size)
    out.seq_lens.copy_(state.num_computed[slots] + rows.advances)
    for name in ("block_tables", "temperature", "top_k", "top_p", "min_p", "seed", "sequence_index"):
        getattr(out, name).copy_(getattr(state, name)[slots])


def advance_slots(
    state: SlotState, rows: StepRows, tokens: Tensor, drawn: Tensor, masked: MaskedStops | None = None
) -> None:
    """Move the slots on by their rows' tokens and enter what was drawn: ``tokens [R]``. Logits that were ``masked`` in place
    are as they were afterwards.

    ``drawn [R]`` int32 becomes the token of each row that drew one and -1 elsewhere: rows that do not draw, and those
    of slots that had ended. A stop token ends its slot, and so does a negative one, which says that no token was left.
    """
    slots = rows.slots.long()
    is_live = state.has_ended[slots] == 0
    draws = is_live & (rows.draws != 0)
    tokens = tokens.int()
    state.num_computed[slots] += rows.advances * is_live
    has_token = tokens >= 0
    state.last_token[slots] = torch.where(draws & has_token, tokens, state.last_token[slots])
    longest = state.stop_token_ids.shape[1] if slots.is_cuda else int(state.num_stop_tokens[slots].max())
    place = torch.arange(longest, device=slots.device)
    is_stop = (state.stop_token_ids[slots, :longest] == tokens.unsqueeze(1)) & (
        place < state.num_stop_tokens[slots].unsqueeze(1)
    )
    state.has_ended[slots] |= (draws & (is_stop.any(1) | ~has_token)).int()
    drawn.copy_(torch.where(draws, tokens, -1))


def mask_early_stops(state: SlotState, rows: StepRows, seq_lens: Tensor, logits: Tensor) -> MaskedStops:
    """Logits ``[R, V]`` in which rows shorter than their ``min_len`` cannot draw a stop token.

    Draw from those, then `advance_slots`, which restores: log-probabilities are of the logits as they were.
    """
    slots = rows.slots.long()
    too_short = (seq_lens < state.min_len[slots]).nonzero().squeeze(1).tolist()
    masked = logits.clone() if too_short else logits
    for row in too_short:
        slot = slots[row]
        stops = state.stop_token_ids[slot, : int(state.num_stop_tokens[slot])].long()
        masked[row, stops[stops < logits.shape[1]]] = float("-inf")
    return MaskedStops(logits=masked, seq_lens=seq_lens, saved=None)
