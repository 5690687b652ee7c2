"""Linear projections in torch with float32 accumulation: what the kernels must compute."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from quire_kernels.norm.reference import rms_norm


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]``, ``weight [N, K]`` and ``bias [N]``, rounded once."""
    return _product(x.float(), weight, bias).to(x.dtype)


def linear_add(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``residual [T, N]`` plus the projection of ``x``, rounded once."""
    return (residual.float() + _product(x.float(), weight, bias)).to(residual.dtype)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``silu(gate) * up`` of the projections of ``x``: ``weight [2 I, K]`` is that of gate, then of up."""
    gate, up = _product(x.float(), weight, bias).chunk(2, dim=1)
    return (silu(gate) * up).to(x.dtype)


def add_norm_project(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    next_weight: Tensor,
    next_bias: Tensor | None,
    gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the residual plus the projection of ``x``, and what ``next_weight`` makes of its norm, each rounded once.

    The norm has no weight of its own: that is in ``next_weight``.
    """
    residual = linear_add(residual, x, weight, bias)
    project = gated_linear if gated else linear
    return residual, project(rms_norm(residual, None, eps), next_weight, next_bias)


def linear_add_squares(
    residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, num_tiles: int
) -> tuple[Tensor, Tensor]:
    """Return `linear_add` and, for a norm of it that the product after it makes, ``squares [T, num_tiles]`` float32, the sum
    of squares of each tile of columns.
    """
    added = linear_add(residual, x, weight, bias)
    return added, added.float().square().unflatten(1, (num_tiles, -1)).sum(dim=2)


def normed_linear(
    x: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """Return the projection of the norm of ``x [T, K]``, whose squares add up to ``squares [T, tiles]``: each row of the product
    is multiplied by that row's inverse root mean square, before the bias."""
    return _normed_product(x, squares, weight, bias, eps).to(x.dtype)


def normed_gated_linear(
    x: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """Return `gated_linear` of the norm of ``x``."""
    gate, up = _normed_product(x, squares, weight, bias, eps).chunk(2, dim=1)
    return (silu(gate) * up).to(x.dtype)


def _normed_product(x: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    factor = torch.rsqrt(squares.sum(dim=1, keepdim=True) / x.shape[1] + eps)
    product = _product(x.float(), weight, None) * factor
    return product if bias is None else product + bias.float()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.float().T
    return product if bias is None else product + bias.float()


def between_attentions(
    residual: Tensor,
    attended: Tensor,
    *,
    o: Tensor,
    gate_up: Tensor,
    down: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the residual and the next layer's queries, keys and values, each operation rounded once as by itself."""
    residual, gated = add_norm_project(
        residual,
        attended,
        o,
        None,
        eps=eps,
        next_weight=gate_up,
        next_bias=None,
        gated=True,
    )
    return add_norm_project(residual, gated, down, None, eps=eps, next_weight=qkv, next_bias=qkv_bias)
