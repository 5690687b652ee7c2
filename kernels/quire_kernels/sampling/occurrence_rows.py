"""Triton kernels over rows of occurrences, which are found by address. Truth: `occurrence.py`."""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv

_TILE = 4096
_TOKENS = 32  # drawn tokens counted at a time


@triton.jit
def _reset_rows_kernel(
    records, token_ids, addresses, width, TILE: tl.constexpr, TOKENS: tl.constexpr, MAX_COUNT: tl.constexpr
):
    record = records + tl.program_id(0) * 5
    address = tl.load(record)
    row = address.to(tl.pointer_type(tl.int16))
    prompt = token_ids + tl.load(record + 2)
    prompt_len = tl.load(record + 3)
    num_tokens = tl.load(record + 4)
    tl.store(addresses + tl.load(record + 1), address)
    for start in range(0, width, TILE):
        entry = start + tl.arange(0, TILE)
        tl.store(row + entry, tl.zeros([TILE], tl.int16), mask=entry < width)
    tl.debug_barrier()
    for start in range(0, prompt_len, TILE):
        at = start + tl.arange(0, TILE)
        token = tl.load(prompt + at, mask=at < prompt_len, other=0)
        tl.store(row + token, tl.full([TILE], -32768, tl.int16), mask=at < prompt_len)
    tl.debug_barrier()
    for start in range(prompt_len, num_tokens, TOKENS):
        at = start + tl.arange(0, TOKENS)
        inside = at < num_tokens
        token = tl.load(prompt + at, mask=inside, other=-1)
        # Each of several equal tokens adds all of them, and all of them store the same.
        equal = (token[:, None] == tl.load(prompt + at, mask=inside, other=-1)[None, :]).to(tl.int32)
        before = tl.load(row + token, mask=inside, other=0).to(tl.int32)
        count = tl.minimum((before & 0x7FFF) + tl.sum(equal, axis=1), MAX_COUNT)
        tl.debug_barrier()
        tl.store(row + token, ((before & -32768) | count).to(tl.int16), mask=inside)
        tl.debug_barrier()


@triton.jit
def _copy_rows_kernel(records, addresses, width, TILE: tl.constexpr):
    record = records + tl.program_id(0) * 3
    address = tl.load(record + 1)
    source = tl.load(record).to(tl.pointer_type(tl.int16))
    target = address.to(tl.pointer_type(tl.int16))
    entry = tl.program_id(1) * TILE + tl.arange(0, TILE)
    tl.store(target + entry, tl.load(source + entry, mask=entry < width), mask=entry < width)
    if tl.program_id(1) == 0:
        tl.store(addresses + tl.load(record + 2), address)


def reset_rows(records: Tensor, token_ids: Tensor, addresses: Tensor, width: int) -> None:
    """Fill rows of ``width`` entries from known tokens and enter their addresses.

    A record of ``records [n, 5]`` int64 is: address, slot, where in ``token_ids`` int32 the sequence starts, how many
    of its tokens are prompt, how many it has.
    """
    _reset_rows_kernel[(records.shape[0],)](
        records, token_ids, addresses, width, TILE=_TILE, TOKENS=_TOKENS, MAX_COUNT=32767, num_warps=8
    )


def copy_rows(records: Tensor, addresses: Tensor, width: int) -> None:
    """Copy rows; a record of ``records [n, 3]`` int64 is: address of the source, of the target, slot of the target."""
    _copy_rows_kernel[(records.shape[0], cdiv(width, _TILE))](
        records, addresses, width, TILE=_TILE, num_warps=4
    )
