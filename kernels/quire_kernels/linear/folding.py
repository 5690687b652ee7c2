"""What the Triton products of few rows fold in: bias, gate, addition to the residual, and a norm. Truth: `linear/reference.py`.

The norm between a sum and the next product is halved. What adds to the residual also leaves the sum of squares of each row of
its strip of outputs; the next product, whose inputs are the rows of the residual as they are, multiplies each row of its results
by what the squares come to. A weight of the norm is in the weight of that product.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def sum_of_shares(shares):
    """Add up ``shares [SHARES, rows, outputs]`` of warps, by halves of what a thread holds after one exchange: `tl.sum` goes
    through shared memory once for every register.
    """
    SHARES: tl.constexpr = shares.shape[0]
    ROWS: tl.constexpr = shares.shape[1]
    STRIP: tl.constexpr = shares.shape[2]
    total = tl.permute(shares, (1, 2, 0))
    for halving in tl.static_range(1, 5):
        if SHARES >> halving > 1:
            first, second = tl.split(tl.reshape(total, (ROWS, STRIP, SHARES >> halving, 2)))
            total = first + second
    first, second = tl.split(total)
    return first + second


@triton.jit
def load_squares(squares, row, num_rows, TILES: tl.constexpr, TILES_SPAN: tl.constexpr):
    """The sums of squares ``[rows, TILES_SPAN]`` of what is to be normed."""
    tile = tl.arange(0, TILES_SPAN)[None, :]
    mask = (row < num_rows)[:, None] & (tile < TILES)
    return tl.load(squares + row[:, None] * TILES + tile, mask=mask, other=0.0)


@triton.jit
def store_results(
    total,  # [rows, outputs] of this program
    total_up,  # the same, used when GATED
    row_squares,  # as of `load_squares`, used when TILES > 0
    bias,
    out,  # [num_rows, N]
    squares,  # [num_rows, programs], written when NORM
    row,
    output,
    num_rows,
    num_outputs,
    eps,
    K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
    NORM: tl.constexpr,
    TILES: tl.constexpr,
):
    """Fold all that follows a product, or a sum with one, into it and store it, once for each strip of outputs."""
    in_strip = output < num_outputs
    target = row[:, None] * num_outputs + output[None, :]
    mask = (row < num_rows)[:, None] & in_strip[None, :]
    if TILES > 0:
        factor = tl.rsqrt(tl.sum(row_squares, axis=1) / K + eps)[:, None]
        total *= factor
        if GATED:
            total_up *= factor
    if HAS_BIAS:
        total += tl.load(bias + output, mask=in_strip, other=0.0).to(tl.float32)[None, :]
    if GATED:
        if HAS_BIAS:
            total_up += tl.load(bias + num_outputs + output, mask=in_strip, other=0.0).to(tl.float32)[None, :]
        total = total * tl.sigmoid(total) * total_up
    rounded = total.to(out.dtype.element_ty)
    tl.store(out + target, rounded, mask=mask)
    if NORM:
        values = tl.where(in_strip[None, :], rounded.to(tl.float32), 0.0)
        strip_squares = squares + row * tl.num_programs(0) + tl.program_id(0)
        tl.store(strip_squares, tl.sum(values * values, axis=1), mask=row < num_rows)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a launch leaves, and what it is given of a norm."""

    out: Tensor  # [T, N]
    squares: Tensor  # [T, tiles] float32; ``out`` takes its place where it is neither left nor read
    leaves_squares: bool
    """For the next product."""
    num_tiles: int
    """Of the squares that are read; 0 where none are."""

    def returned(self) -> Tensor:
        """What is returned of them, beside what ``out`` was given for."""
        return self.squares if self.leaves_squares else self.out


def check_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    *,
    gated: bool,
    add: bool,
    leave_squares: bool,
    squares: Tensor | None,
) -> int:
    """Return how many outputs a row has. Raises ``ValueError`` on what does not go together."""
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x has shape {tuple(x.shape)}; it must be (rows, {weight.shape[1]})")
    if x.stride(1) != 1 or weight.stride(1) != 1:
        raise ValueError("the rows of x and weight must be contiguous")
    if bias is not None and (bias.shape != weight.shape[:1] or not bias.is_contiguous()):
        raise ValueError(f"bias has shape {tuple(bias.shape)}; it must be ({weight.shape[0]},), contiguous")
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    reason = _misfit_of_norm(x, gated=gated, add=add, leave_squares=leave_squares, squares=squares)
    if reason := reason or _misfit_of_out(out, x, num_outputs):
        raise ValueError(reason)
    return num_outputs


def allocate_results(
    x: Tensor,
    num_outputs: int,
    num_programs: int,
    *,
    out: Tensor | None,
    leave_squares: bool,
    squares: Tensor | None,
) -> Results:
    """Room for what so many programs, side by side in a row, leave of a product that `check_product` has passed."""
    if out is None:
        out = torch.empty((x.shape[0], num_outputs), dtype=x.dtype, device=x.device)
    if leave_squares:
        squares = torch.empty((x.shape[0], num_programs), dtype=torch.float32, device=x.device)
        return Results(out=out, squares=squares, leaves_squares=True, num_tiles=0)
    if squares is None:
        return Results(out=out, squares=out, leaves_squares=False, num_tiles=0)
    return Results(out=out, squares=squares, leaves_squares=False, num_tiles=squares.shape[1])


def _misfit_of_out(out: Tensor | None, x: Tensor, num_outputs: int) -> str | None:
    """Why the product of ``x [T, K]`` cannot be written where it is asked for, or None."""
    if out is None or (
        out.shape == (x.shape[0], num_outputs) and out.dtype == x.dtype and out.is_contiguous()
    ):
        return None
    return (
        f"out is {out.dtype} of shape {tuple(out.shape)} with strides {out.stride()}; it must be {x.dtype} of shape "
        f"{(x.shape[0], num_outputs)}, contiguous"
    )


def _misfit_of_norm(
    x: Tensor, *, gated: bool, add: bool, leave_squares: bool, squares: Tensor | None
) -> str | None:
    """Why no norm can be folded in like this, or None."""
    if gated and add:
        return "a gated product cannot be added to a residual"
    if add and not leave_squares and squares is not None:
        return "a product of a norm, given by its squares, cannot be added to a residual"
    if leave_squares and (not add or squares is not None):
        return "only a sum, which is given no squares, can leave its own"
    if squares is not None:
        if squares.dtype != torch.float32 or not squares.is_contiguous():
            return f"squares are {squares.dtype} with strides {squares.stride()}; they must be float32, contiguous"
        if squares.dim() != 2 or squares.shape[0] != x.shape[0]:
            return f"squares has shape {tuple(squares.shape)}; it must be ({x.shape[0]}, tiles)"
    return None
