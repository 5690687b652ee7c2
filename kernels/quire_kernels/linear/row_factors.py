"""Factors of rows, by which a product of many rows stands for that of their norm: the inverse root mean square of each.

They are the second half of a norm whose weight is in the weights already. The first tile of each block of rows adds up the
squares of its rows while they lie in shared memory to be multiplied, and leaves the factors for all others, each with the tag
of this launch, so that none must be cleared: who reads waits until it is there.

All programs of such a product must be able to run at once: they are no more than there are multiprocessors, and nothing else on
the device may wait for multiprocessors that it keeps. Two processes that share a GPU by turns are no danger to each other; under
MPS, which lets them run side by side, they are. Knows rows, their squares and a launch's tag; nothing of the product.
"""

# pyright: reportAssignmentType=false

from functools import cache
from typing import NamedTuple

import torch
import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl
from torch import Tensor

MAX_ROWS = 131_072
"""Rows of which factors can be worked out: a megabyte of them."""

_PAST_END = 256
"""Rows that the last block of rows may have beyond these."""


class SharedFactors(NamedTuple):
    """What products that work out factors by themselves share on a device."""

    tagged: Tensor  # [rows] int64: a factor's float32 below, the tag of the launch that left it above
    launches: Tensor  # [2] int32: how many there were, and how many programs of this one are done


@cache
def shared_factors(device: torch.device) -> SharedFactors:
    """Those of a device. The first product must not be captured: what begins as zeros would do so again at each replay."""
    return SharedFactors(
        torch.zeros(MAX_ROWS + _PAST_END, dtype=torch.int64, device=device),
        torch.zeros(2, dtype=torch.int32, device=device),
    )


@gluon.constexpr_function
def _half_rows_layout(rows, columns):
    """How a warpgroup reads 64 rows of 128 bytes, two threads a row: eight that are served at once are in banks of their own."""
    return gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16]],
        [[0, 32], [1, 0], [2, 0], [4, 0], [8, 0]],
        [[16, 0], [32, 0]],
        [],
        [rows, columns],
    )


@gluon.jit
def no_squares(ROWS: gl.constexpr, STEP: gl.constexpr):
    """Return where `add_squares` begins."""
    return gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, _half_rows_layout(ROWS, STEP)))


@gluon.jit
def add_squares(squares, staged):
    """Return the sums with the squares of what one stage has of the rows."""
    values = staged.load(_half_rows_layout(staged.shape[0], staged.shape[1])).to(gl.float32)
    return squares + gl.sum(values * values, axis=1)


@gluon.jit
def leave_factors(tagged, squares, row, tag, num_inputs, eps):
    """Tell all programs the factors of rows."""
    ROWS: gl.constexpr = squares.shape[0]
    rows = row + gl.arange(0, ROWS, squares.type.layout)
    factors = gl.rsqrt(squares / num_inputs + eps)
    low = factors.to(gl.uint32, bitcast=True).to(gl.int64)
    gl.atomic_xchg(tagged + rows, low | (tag.to(gl.int64) << 32), sem="relaxed")


@gluon.jit
def await_factors(tagged, row, tag, ROWS: gl.constexpr, LAYOUT: gl.constexpr):
    """Return the factors of rows, once they are those of this launch."""
    return gl.inline_asm_elementwise(
        """{
        .reg .pred late;
        .reg .b32 found_0, found_1;
        .reg .b64 tagged_0, tagged_1;
        again:
        ld.relaxed.gpu.global.b64 tagged_0, [$2];
        ld.relaxed.gpu.global.b64 tagged_1, [$3];
        mov.b64 {$0, found_0}, tagged_0;
        mov.b64 {$1, found_1}, tagged_1;
        setp.ne.b32 late, found_0, $4;
        setp.ne.or.b32 late, found_1, $5, late;
        @late nanosleep.u32 100;
        @late bra again;
        }""",
        "=&f,=&f,l,l,r,r",
        [tagged + row + gl.arange(0, ROWS, LAYOUT), tag],
        dtype=gl.float32,
        is_pure=False,
        pack=2,
    )


@gluon.jit
def end_launch(launches, tag):
    """Say that a program has no more to read, and let the next launch have a tag of its own where it is the last one."""
    if gl.atomic_add(launches + 1, 1, sem="acq_rel") == gl.num_programs(0) - 1:
        gl.store(launches + 1, 0)
        gl.store(launches, tag)
