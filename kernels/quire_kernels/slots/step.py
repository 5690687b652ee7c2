"""Triton kernels at the two ends of a step: what it reads of its slots, and how they move on.

Truth: `slots/reference.py`. Launches depend on the padded sizes alone, so that both belong into a captured graph.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.slots.state import MAX_STOP_TOKENS, MaskedStops, SlotState, StepRows, StepTensors

_TOKENS_PER_PROGRAM = 128
_TABLE_TILE = 256


@triton.jit
def _prepare_tokens_kernel(
    slots, query_start_loc, given_tokens, token_rows, last_token, num_computed, has_ended, block_tables,
    token_ids, positions, slot_mapping, num_tokens, scratch_slot, table_stride,
    BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = token < num_tokens
    row = tl.load(token_rows + token, mask=inside, other=-1)
    live = row >= 0
    slot = tl.load(slots + row, mask=live, other=scratch_slot).to(tl.int64)
    start = tl.load(query_start_loc + row, mask=live, other=0)
    position = tl.load(num_computed + slot, mask=live, other=0) + token - start
    position = tl.where(live, position, 0)
    ended = tl.load(has_ended + slot, mask=live, other=1)
    writes = live & (ended == 0)
    block = tl.load(block_tables + slot * table_stride + position // BLOCK_SIZE, mask=writes, other=0)
    given = tl.load(given_tokens + token, mask=live, other=0)
    known = tl.load(last_token + slot, mask=live & (given < 0), other=0)
    tl.store(token_ids + token, tl.where(given < 0, known, given).to(tl.int64), mask=inside)
    tl.store(positions + token, position.to(tl.int64), mask=inside)
    place = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
    tl.store(slot_mapping + token, place, mask=inside)


@triton.jit
def _prepare_rows_kernel(
    slots, advances, num_computed, block_tables, temperature, top_k, top_p, min_p, seed, sequence_index,
    out_seq_lens, out_tables, out_temperature, out_top_k, out_top_p, out_min_p, out_seed, out_sequence_index,
    table_stride, out_table_stride, max_blocks,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    seq_len = tl.load(num_computed + slot) + tl.load(advances + row)
    tl.store(out_seq_lens + row, seq_len)
    tl.store(out_temperature + row, tl.load(temperature + slot))
    tl.store(out_top_k + row, tl.load(top_k + slot))
    tl.store(out_top_p + row, tl.load(top_p + slot))
    tl.store(out_min_p + row, tl.load(min_p + slot))
    tl.store(out_seed + row, tl.load(seed + slot))
    tl.store(out_sequence_index + row, tl.load(sequence_index + slot))
    source = block_tables + slot * table_stride
    target = out_tables + row.to(tl.int64) * out_table_stride
    # Only what the step reads; the rest of the row keeps older, unread block numbers.
    num_blocks = tl.minimum(tl.cdiv(seq_len, BLOCK_SIZE), max_blocks)
    for start in range(0, num_blocks, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < num_blocks
        tl.store(target + index, tl.load(source + index, mask=inside), mask=inside)


@triton.jit
def _advance_slots_kernel(
    slots, advances, draws, tokens, last_token, num_computed, has_ended, num_stop_tokens, stop_token_ids, drawn,
    MAX_STOPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    token = tl.load(tokens + row).to(tl.int32)
    if tl.load(has_ended + slot) != 0:
        tl.store(drawn + row, -1)
    else:
        tl.store(num_computed + slot, tl.load(num_computed + slot) + tl.load(advances + row))
        if tl.load(draws + row) == 0:
            tl.store(drawn + row, -1)
        else:
            tl.store(drawn + row, token)
            tl.store(last_token + slot, token, mask=token >= 0)
            place = tl.arange(0, MAX_STOPS)
            inside = place < tl.load(num_stop_tokens + slot)
            stops = tl.load(stop_token_ids + slot * MAX_STOPS + place, mask=inside, other=-1)
            is_stop = tl.max((stops == token).to(tl.int32), axis=0)
            tl.store(has_ended + slot, tl.where(token < 0, 1, is_stop))


@triton.jit
def _mask_early_stops_kernel(
    slots, seq_lens, min_len, num_stop_tokens, stop_token_ids, logits, saved, vocab_size, row_stride,
    RESTORE: tl.constexpr, MAX_STOPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if tl.load(seq_lens + row) < tl.load(min_len + slot):
        place = tl.arange(0, MAX_STOPS)
        stops = tl.load(
            stop_token_ids + slot * MAX_STOPS + place,
            mask=place < tl.load(num_stop_tokens + slot),
            other=vocab_size,
        )
        inside = stops < vocab_size
        target = logits + row.to(tl.int64) * row_stride + stops
        kept = saved + row * MAX_STOPS + place
        if RESTORE:
            tl.store(target, tl.load(kept, mask=inside), mask=inside)
        else:
            tl.store(kept, tl.load(target, mask=inside), mask=inside)
            tl.debug_barrier()  # a token that is named twice must be read twice before it is masked
            tl.store(target, -float("inf"), mask=inside)


def prepare_step(state: SlotState, rows: StepRows, block_size: int, out: StepTensors) -> None:
    """See `reference.prepare_step`."""
    num_tokens, num_rows = rows.token_ids.shape[0], rows.slots.shape[0]
    _prepare_tokens_kernel[(triton.cdiv(num_tokens, _TOKENS_PER_PROGRAM),)](
        rows.slots, rows.query_start_loc, rows.token_ids, rows.token_rows, state.last_token, state.num_computed,
        state.has_ended, state.block_tables, out.token_ids, out.positions, out.slot_mapping, num_tokens,
        state.scratch_slot, state.block_tables.stride(0),
        BLOCK_SIZE=block_size, TOKENS=_TOKENS_PER_PROGRAM,
    )  # fmt: skip
    _prepare_rows_kernel[(num_rows,)](
        rows.slots, rows.advances, state.num_computed, state.block_tables, state.temperature, state.top_k,
        state.top_p, state.min_p, state.seed, state.sequence_index, out.seq_lens, out.block_tables,
        out.temperature, out.top_k, out.top_p, out.min_p, out.seed, out.sequence_index,
        state.block_tables.stride(0), out.block_tables.stride(0), state.block_tables.shape[1],
        BLOCK_SIZE=block_size, TILE=_TABLE_TILE, num_warps=1,
    )  # fmt: skip


def advance_slots(state: SlotState, rows: StepRows, tokens: Tensor, drawn: Tensor) -> None:
    """See `reference.advance_slots`."""
    _advance_slots_kernel[(rows.slots.shape[0],)](
        rows.slots, rows.advances, rows.draws, tokens, state.last_token, state.num_computed, state.has_ended,
        state.num_stop_tokens, state.stop_token_ids, drawn,
        MAX_STOPS=MAX_STOP_TOKENS, num_warps=1,
    )  # fmt: skip


def mask_early_stops(state: SlotState, rows: StepRows, seq_lens: Tensor, logits: Tensor) -> MaskedStops:
    """See `reference.mask_early_stops`; writes in place, because a captured step may not look at values."""
    saved = torch.empty((logits.shape[0], MAX_STOP_TOKENS), dtype=logits.dtype, device=logits.device)

    def launch(*, restore: bool) -> None:
        _mask_early_stops_kernel[(rows.slots.shape[0],)](
            rows.slots, seq_lens, state.min_len, state.num_stop_tokens, state.stop_token_ids, logits, saved,
            logits.shape[1], logits.stride(0),
            RESTORE=restore, MAX_STOPS=MAX_STOP_TOKENS, num_warps=1,
        )  # fmt: skip

    launch(restore=False)
    return MaskedStops(logits, lambda: launch(restore=True))
