"""Triton updates of slots between steps: admissions, grants of blocks, forks. Truth: `slots/reference.py`."""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.slots.state import ADMISSION_WIDTH, CHANGES_HEADER_WIDTH, MAX_STOP_TOKENS, SlotState

_GRANTS_TILE = 256
_CHANGE_PROGRAMS = 32
_TABLE_TILE = 1024


@triton.jit(do_not_specialize=["num_ints"])  # a plan of uncommon length compiles nothing
def _enter_changes_kernel(
    changes, num_ints, num_computed, top_k, sequence_index, min_len, num_stop_tokens, temperature, top_p, min_p,
    seed, repetition_penalty, frequency_penalty, presence_penalty, has_ended, stop_token_ids,
    block_tables, table_stride,
    HEADER: tl.constexpr, RECORD: tl.constexpr, MAX_STOPS: tl.constexpr, GRANTS: tl.constexpr,
):  # fmt: skip
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    header = changes + num_ints - HEADER
    num_admissions = tl.load(header + 2)
    num_grants = tl.load(header + 1)
    records = header - num_admissions * RECORD
    grants = records - num_grants * 3
    stops = grants - tl.load(header)
    for number in range(program, num_admissions, num_programs):
        record = records + number * RECORD
        slot = tl.load(record)
        tl.store(num_computed + slot, tl.load(record + 1))
        tl.store(top_k + slot, tl.load(record + 2))
        tl.store(sequence_index + slot, tl.load(record + 3))
        tl.store(min_len + slot, tl.load(record + 4))
        num_stops = tl.load(record + 5)
        tl.store(num_stop_tokens + slot, num_stops)
        tl.store(temperature + slot, tl.load(record + 6).to(tl.float32, bitcast=True))
        tl.store(top_p + slot, tl.load(record + 7).to(tl.float32, bitcast=True))
        tl.store(min_p + slot, tl.load(record + 8).to(tl.float32, bitcast=True))
        low = tl.load(record + 10).to(tl.int64) & 0xFFFFFFFF
        tl.store(seed + slot, (tl.load(record + 11).to(tl.int64) << 32) | low)
        tl.store(repetition_penalty + slot, tl.load(record + 12).to(tl.float32, bitcast=True))
        tl.store(frequency_penalty + slot, tl.load(record + 13).to(tl.float32, bitcast=True))
        tl.store(presence_penalty + slot, tl.load(record + 14).to(tl.float32, bitcast=True))
        tl.store(has_ended + slot, 0)
        place = tl.arange(0, MAX_STOPS)
        tokens = tl.load(stops + tl.load(record + 9) + place, mask=place < num_stops, other=0)
        tl.store(stop_token_ids + slot * MAX_STOPS + place, tokens, mask=place < num_stops)
    for start in range(program * GRANTS, num_grants, num_programs * GRANTS):
        grant = start + tl.arange(0, GRANTS)
        inside = grant < num_grants
        slot = tl.load(grants + 3 * grant, mask=inside, other=0).to(tl.int64)
        index = tl.load(grants + 3 * grant + 1, mask=inside, other=0)
        block = tl.load(grants + 3 * grant + 2, mask=inside, other=0)
        tl.store(block_tables + slot * table_stride + index, block, mask=inside)


@triton.jit
def _fork_slots_kernel(
    forks, last_token, num_computed, has_ended, temperature, top_k, top_p, min_p, seed, sequence_index, min_len,
    repetition_penalty, frequency_penalty, presence_penalty, num_stop_tokens, stop_token_ids,
    block_tables, table_stride, max_blocks,
    MAX_STOPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    fork = forks + 3 * tl.program_id(0)
    parent, child = tl.load(fork), tl.load(fork + 1)
    tl.store(sequence_index + child, tl.load(fork + 2))
    tl.store(last_token + child, tl.load(last_token + parent))
    tl.store(num_computed + child, tl.load(num_computed + parent))
    tl.store(has_ended + child, tl.load(has_ended + parent))
    tl.store(temperature + child, tl.load(temperature + parent))
    tl.store(top_k + child, tl.load(top_k + parent))
    tl.store(top_p + child, tl.load(top_p + parent))
    tl.store(min_p + child, tl.load(min_p + parent))
    tl.store(seed + child, tl.load(seed + parent))
    tl.store(min_len + child, tl.load(min_len + parent))
    tl.store(repetition_penalty + child, tl.load(repetition_penalty + parent))
    tl.store(frequency_penalty + child, tl.load(frequency_penalty + parent))
    tl.store(presence_penalty + child, tl.load(presence_penalty + parent))
    tl.store(num_stop_tokens + child, tl.load(num_stop_tokens + parent))
    place = tl.arange(0, MAX_STOPS)
    tl.store(stop_token_ids + child * MAX_STOPS + place, tl.load(stop_token_ids + parent * MAX_STOPS + place))
    source = block_tables + parent.to(tl.int64) * table_stride
    target = block_tables + child.to(tl.int64) * table_stride
    for start in range(0, max_blocks, TILE):
        index = start + tl.arange(0, TILE)
        inside = index < max_blocks
        tl.store(target + index, tl.load(source + index, mask=inside), mask=inside)


def enter_changes(state: SlotState, changes: Tensor) -> None:
    """See `reference.enter_changes`; one launch whatever there is to enter, so that it can be captured."""
    _enter_changes_kernel[(_CHANGE_PROGRAMS,)](
        changes, changes.shape[0], state.num_computed, state.top_k, state.sequence_index, state.min_len,
        state.num_stop_tokens, state.temperature, state.top_p, state.min_p, state.seed,
        state.repetition_penalty, state.frequency_penalty, state.presence_penalty, state.has_ended,
        state.stop_token_ids, state.block_tables, state.block_tables.stride(0),
        HEADER=CHANGES_HEADER_WIDTH, RECORD=ADMISSION_WIDTH, MAX_STOPS=MAX_STOP_TOKENS, GRANTS=_GRANTS_TILE,
        num_warps=1,
    )  # fmt: skip


def fork_slots(state: SlotState, forks: Tensor) -> None:
    """See `reference.fork_slots`; one program per child, no child may be another's parent."""
    if forks.shape[0]:
        _fork_slots_kernel[(forks.shape[0],)](
            forks, state.last_token, state.num_computed, state.has_ended, state.temperature, state.top_k,
            state.top_p, state.min_p, state.seed, state.sequence_index, state.min_len, state.repetition_penalty,
            state.frequency_penalty, state.presence_penalty, state.num_stop_tokens,
            state.stop_token_ids, state.block_tables, state.block_tables.stride(0), state.block_tables.shape[1],
            MAX_STOPS=MAX_STOP_TOKENS, TILE=_TABLE_TILE,
        )  # fmt: skip
