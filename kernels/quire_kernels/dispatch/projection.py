"""Which implementation multiplies by a weight: one of our kernels by the number of rows, oneDNN or the library.

From few rows to many, the first that suits is taken; the shapes that a kernel suits are those of `linear.tuning` and
`linear.tiling`, which measurements chose.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.dispatch.activation import silu_and_mul
from quire_kernels.dispatch.norm import rms_norm
from quire_kernels.gpu import gluon_module
from quire_kernels.linear import cpu as linear_cpu
from quire_kernels.linear.by_table import multiply_by_table
from quire_kernels.linear.tiling import MANY_ROWS
from quire_kernels.linear.tuning import held_config, suits_few_rows, suits_folded_norm, suits_tiles
from quire_kernels.rotary.places import HeadPlaces


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """Project ``x [T, K]`` by ``weight [N, K]``, into ``out [T, N]`` where it is given: by our kernels for one row,
    for few, for some hundred and for many rows of 16-bit data, by oneDNN for packed weights, else by the library, with an
    algorithm of the table where it has one.
    """
    if ours := _our_product(x, weight, bias):
        return ours(x, weight, bias, out=out)
    if out is None and (ours := _many_rows_product(x, weight, bias)):
        return ours(x, weight)
    if weight.is_mkldnn:
        product = linear_cpu.linear_packed(x, weight, bias)
        return product if out is None else out.copy_(product)
    if out is None:
        if bias is not None or not _may_use_table(x):
            return torch.nn.functional.linear(x, weight, bias)
        out = x.new_empty((x.shape[0], weight.shape[0]))
    _multiply(x, weight, out)
    return out if bias is None else out.add_(bias)


def linear_add_(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Add the projection of ``x`` to ``residual [T, N]`` in place; see `linear.reference.linear_add`."""
    if ours := _our_product(x, weight, bias):
        return ours(x, weight, bias, out=residual, add=True)
    if weight.is_mkldnn:
        return residual.add_(linear_cpu.linear_packed(x, weight, bias))
    _multiply(x, weight, residual, add=True)  # the library adds as it writes
    return residual if bias is None else residual.add_(bias)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float) -> Tensor:
    """Project the norm of ``x``, by no weight, to gate and up and join them; see `linear.reference.gated_linear`."""
    if ours := _many_rows_product(x, weight, bias, gated=True):
        return ours(x, weight, gated=True, eps=eps)
    normed = rms_norm(x, None, eps)
    if ours := _our_product(normed, weight, bias, gated=True):
        return ours(normed, weight, bias, gated=True)
    return silu_and_mul(linear(normed, weight, bias))


def add_norm_project_(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    next_weight: Tensor,
    next_bias: Tensor | None,
    gated: bool = False,
    places: HeadPlaces | None = None,
) -> Tensor:
    """Add the projection of ``x`` to ``residual`` in place, and project the norm of the sum, to gate and up if ``gated``, else
    as `project_heads` does. A weight that the norm has must be in ``next_weight``.

    Where both products are of ours, the norm is no launch of its own: the first leaves the squares of the rows that it adds to,
    and the second multiplies what it makes of these rows by a factor for each. A second product of many rows finds the squares
    by itself.
    """
    if ours := _products_around_norm(residual, x, weight, bias, next_weight, next_bias, gated=gated):
        first, second = ours
        squares = first(x, weight, bias, out=residual, add=True, leave_squares=True)
        gates = {"gated": True} if gated else {}  # not every kernel can make them
        return second(residual, next_weight, next_bias, squares=squares, eps=eps, **gates)
    linear_add_(residual, x, weight, bias)
    if gated:
        return gated_linear(residual, next_weight, next_bias, eps=eps)
    return project_heads(residual, next_weight, next_bias, places, eps=eps)


def project_heads(
    x: Tensor, weight: Tensor, bias: Tensor | None, places: HeadPlaces | None, *, eps: float
) -> Tensor:
    """Project the norm of ``x``, by no weight, to queries, keys and values, side by side. Where ``places`` says how they are
    rotated and where keys and values go, and a kernel does so as it leaves the product, they are done with: what returns then
    is the queries alone.
    """
    if places and bias is None and (many := _many_rows_kernel(x)) and many.suits_heads(x, weight, places):
        return many.linear_many_rows_heads(x, weight, places, eps=eps)
    if ours := _many_rows_product(x, weight, bias):
        return ours(x, weight, eps=eps)
    return linear(rms_norm(x, None, eps), weight, bias)


def pack_linear_weight(weight: Tensor) -> Tensor:
    """Return a weight in the layout that `linear` is fastest with; nothing else can read it."""
    return linear_cpu.pack_linear_weight(weight) if weight.device.type == "cpu" else weight


def _products_around_norm(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    next_weight: Tensor,
    next_bias: Tensor | None,
    *,
    gated: bool,
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]] | None:
    """The kernels of two products that share a norm between them, or None: one row, large weights, and products that the
    library or the kernel for many rows makes.
    """
    if residual.shape[0] == 1 or not suits_folded_norm(max(weight.numel(), next_weight.numel())):
        return None
    first = _our_product(x, weight, bias)
    second = _our_product(residual, next_weight, next_bias, gated=gated)
    return (first, second) if first and second else None


def _our_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel for one row, for few or for some hundred of 16-bit data; None where the library is as fast, and where the
    GPU is too old for the kernel.
    """
    if x.element_size() != 2 or not device.runs_triton(x):
        return None
    if x.shape[0] == 1:
        from quire_kernels.linear.gemv import linear_gemv

        return linear_gemv
    num_rows, num_inputs = x.shape
    num_outputs = weight.shape[0] // 2 if gated else weight.shape[0]
    sizes = (num_rows, num_outputs, num_inputs)
    if not device.holds_deep_pipelines(x.device):
        return None
    if not gated and held_config(*sizes):
        from quire_kernels.linear.held_rows import linear_held_rows

        return linear_held_rows
    if suits_tiles(*sizes, gated=gated) and device.is_hopper(x.device):
        tiles = gluon_module("quire_kernels.linear.tiles_hopper")
        if tiles and tiles.can_multiply(x, weight):
            return tiles.linear_tiles_hopper
    if suits_few_rows(*sizes, gated=gated):
        from quire_kernels.linear.rows import linear_rows

        return linear_rows
    return None


def _many_rows_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, gated: bool = False
) -> Callable[..., Tensor] | None:
    """The kernel for many rows of 16-bit data on Hopper; None where the library is as fast."""
    many = _many_rows_kernel(x) if bias is None else None
    return many.linear_many_rows if many and many.suits(x, weight, gated=gated) else None


def _many_rows_kernel(x: Tensor) -> Any:
    """Its module, where rows are as many and the GPU is one that it is for."""
    if x.shape[0] < MANY_ROWS or x.element_size() != 2 or not device.runs_triton(x):
        return None
    return gluon_module("quire_kernels.linear.many_rows") if device.is_hopper(x.device) else None


def _multiply(x: Tensor, weight: Tensor, out: Tensor, *, add: bool = False) -> None:
    """By the library, into `out` or onto what is there, with an algorithm of the table where it has one."""
    if _may_use_table(x) and multiply_by_table(x, weight, out, add=add):
        return
    if add:
        out.addmm_(x, weight.t())
    else:
        torch.mm(x, weight.t(), out=out)


def _may_use_table(x: Tensor) -> bool:
    return x.is_cuda and x.element_size() == 2
