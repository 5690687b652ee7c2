"""Triton kernels at the two ends of a step: what it reads of its slots, and how they move on.

Truth: `slots/reference.py`. Launches depend on the padded sizes alone, so that both belong into a captured graph. There
each costs two microseconds or three of a step: one launch prepares rows and tokens, and the one that moves the slots on
also restores logits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv
from quire_kernels.overlap import finish_launching, launch_options, overlaps_launches, wait_for_inputs
from quire_kernels.slots.state import MAX_STOP_TOKENS, MaskedStops, SlotState, StepRows, StepTensors

_TOKENS_PER_PROGRAM = 32
_TABLE_TILE = 256


@triton.jit(do_not_specialize=["num_rows", "num_tokens"])  # one binary for all sizes
def _prepare_step_kernel(
    slots, advances, query_start_loc, given_tokens, token_rows,
    last_token, num_computed, has_ended, block_tables,
    temperature, top_k, top_p, min_p, seed, sequence_index,
    token_ids, positions, slot_mapping,
    out_seq_lens, out_tables, out_temperature, out_top_k, out_top_p, out_min_p, out_seed, out_sequence_index,
    num_rows, num_tokens, scratch_slot, table_stride, out_table_stride, max_blocks,
    BLOCK_SIZE: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    if program < num_rows:
        _prepare_row(
            program, slots, advances, num_computed, block_tables,
            temperature, top_k, top_p, min_p, seed, sequence_index,
            out_seq_lens, out_tables, out_temperature, out_top_k, out_top_p, out_min_p, out_seed, out_sequence_index,
            table_stride, out_table_stride, max_blocks, BLOCK_SIZE, TILE,
        )  # fmt: skip
    else:
        _prepare_tokens(
            (program - num_rows) * TOKENS + tl.arange(0, TOKENS),
            slots, query_start_loc, given_tokens, token_rows, last_token, num_computed, has_ended, block_tables,
            token_ids, positions, slot_mapping, num_tokens, scratch_slot, table_stride, BLOCK_SIZE,
        )  # fmt: skip


@triton.jit
def _prepare_tokens(
    token, slots, query_start_loc, given_tokens, token_rows, last_token, num_computed, has_ended, block_tables,
    token_ids, positions, slot_mapping, num_tokens, scratch_slot, table_stride,
    BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
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
def _prepare_row(
    row, slots, advances, num_computed, block_tables, temperature, top_k, top_p, min_p, seed, sequence_index,
    out_seq_lens, out_tables, out_temperature, out_top_k, out_top_p, out_min_p, out_seed, out_sequence_index,
    table_stride, out_table_stride, max_blocks,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
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
def _mask_early_stops_kernel(
    slots, seq_lens, min_len, num_stop_tokens, stop_token_ids, logits, saved, vocab_size, row_stride,
    MAX_STOPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    if tl.load(seq_lens + row) < tl.load(min_len + slot):
        target, inside = _early_stops(
            row, slot, num_stop_tokens, stop_token_ids, logits, vocab_size, row_stride, MAX_STOPS
        )
        kept = saved + row * MAX_STOPS + tl.arange(0, MAX_STOPS)
        tl.store(kept, tl.load(target, mask=inside), mask=inside)
        tl.debug_barrier()  # a token that is named twice must be read twice before it is masked
        tl.store(target, -float("inf"), mask=inside)


@triton.jit
def _early_stops(
    row, slot, num_stop_tokens, stop_token_ids, logits, vocab_size, row_stride, MAX_STOPS: tl.constexpr
):  # fmt: skip
    """Return where a row's logits of its stop tokens lie, and which of them are there."""
    place = tl.arange(0, MAX_STOPS)
    named = place < tl.load(num_stop_tokens + slot)
    stops = tl.load(stop_token_ids + slot * MAX_STOPS + place, mask=named, other=vocab_size)
    return logits + row.to(tl.int64) * row_stride + stops, stops < vocab_size


@triton.jit
def _advance_slots_kernel(
    slots, advances, draws, tokens, last_token, num_computed, has_ended, num_stop_tokens, stop_token_ids, drawn,
    seq_lens, min_len, logits, saved, vocab_size, row_stride,
    MAX_STOPS: tl.constexpr, RESTORES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    row = tl.program_id(0)
    slot = tl.load(slots + row).to(tl.int64)
    token = tl.load(tokens + row).to(tl.int32)
    too_short = False
    if RESTORES:
        too_short = tl.load(seq_lens + row) < tl.load(min_len + slot)
    if too_short:
        target, inside = _early_stops(
            row, slot, num_stop_tokens, stop_token_ids, logits, vocab_size, row_stride, MAX_STOPS
        )
        kept = tl.load(saved + row * MAX_STOPS + tl.arange(0, MAX_STOPS), mask=inside)
        tl.store(target, kept, mask=inside)
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


def prepare_step(state: SlotState, rows: StepRows, block_size: int, out: StepTensors) -> None:
    """See `reference.prepare_step`."""
    num_tokens, num_rows = rows.token_ids.shape[0], rows.slots.shape[0]
    _prepare_step_kernel[(num_rows + cdiv(num_tokens, _TOKENS_PER_PROGRAM),)](
        rows.slots, rows.advances, rows.query_start_loc, rows.token_ids, rows.token_rows,
        state.last_token, state.num_computed, state.has_ended, state.block_tables,
        state.temperature, state.top_k, state.top_p, state.min_p, state.seed, state.sequence_index,
        out.token_ids, out.positions, out.slot_mapping,
        out.seq_lens, out.block_tables, out.temperature, out.top_k, out.top_p, out.min_p, out.seed, out.sequence_index,
        num_rows, num_tokens, state.scratch_slot,
        state.block_tables.stride(0), out.block_tables.stride(0), state.block_tables.shape[1],
        BLOCK_SIZE=block_size, TOKENS=_TOKENS_PER_PROGRAM, TILE=_TABLE_TILE, num_warps=1,
    )  # fmt: skip


def mask_early_stops(state: SlotState, rows: StepRows, seq_lens: Tensor, logits: Tensor) -> MaskedStops:
    """See `reference.mask_early_stops`; writes in place, because a captured step may not look at values."""
    saved = torch.empty((logits.shape[0], MAX_STOP_TOKENS), dtype=logits.dtype, device=logits.device)
    _mask_early_stops_kernel[(rows.slots.shape[0],)](
        rows.slots, seq_lens, state.min_len, state.num_stop_tokens, state.stop_token_ids, logits, saved,
        logits.shape[1], logits.stride(0),
        MAX_STOPS=MAX_STOP_TOKENS, num_warps=1,
    )  # fmt: skip
    return MaskedStops(logits=logits, seq_lens=seq_lens, saved=saved)


def advance_slots(
    state: SlotState, rows: StepRows, tokens: Tensor, drawn: Tensor, masked: MaskedStops | None = None
) -> None:
    """See `reference.advance_slots`."""
    # Where nothing was masked the kernel reads none of the places that follow; whatever tensor is at hand stands for them.
    saved = masked.saved if masked else None
    logits = masked.logits if masked else tokens
    overlap = overlaps_launches(tokens.device)
    _advance_slots_kernel[(rows.slots.shape[0],)](
        rows.slots, rows.advances, rows.draws, tokens, state.last_token, state.num_computed, state.has_ended,
        state.num_stop_tokens, state.stop_token_ids, drawn,
        masked.seq_lens if masked else tokens, state.min_len, logits, logits if saved is None else saved,
        logits.shape[-1], logits.stride(0),
        MAX_STOPS=MAX_STOP_TOKENS, RESTORES=saved is not None, OVERLAP=overlap, num_warps=1,
        **launch_options(overlap),
    )  # fmt: skip
