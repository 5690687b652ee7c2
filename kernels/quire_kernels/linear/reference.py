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
    norm_weight: Tensor,
    eps: float,
    next_weight: Tensor,
    next_bias: Tensor | None,
    gated: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the residual plus the projection of ``x``, and what ``next_weight`` makes of its norm, each rounded once."""
    residual = linear_add(residual, x, weight, bias)
    project = gated_linear if gated else linear
    return residual, project(rms_norm(residual, norm_weight, eps), next_weight, next_bias)


def linear_add_scaled(
    residual: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    norm_weight: Tensor,
    num_tiles: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return `linear_add` and what a norm of it is made of by the product after it: ``scaled [T, N]``, the sum times
    ``norm_weight [N]``, rounded, and ``squares [T, num_tiles]`` float32, the sum of squares of each tile of columns.
    """
    added = linear_add(residual, x, weight, bias)
    squares = added.float().square().unflatten(1, (num_tiles, -1)).sum(dim=2)
    return added, (added.float() * norm_weight.float()).to(added.dtype), squares


def scaled_linear(
    scaled: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """Return the projection of the norm that ``scaled [T, K]`` and ``squares [T, tiles]`` stand for: each row of the product
    is multiplied by that row's inverse root mean square, before the bias."""
    return _scaled_product(scaled, squares, weight, bias, eps).to(scaled.dtype)


def scaled_gated_linear(
    scaled: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None = None, *, eps: float
) -> Tensor:
    """Return `gated_linear` of the norm that ``scaled`` and ``squares`` stand for."""
    gate, up = _scaled_product(scaled, squares, weight, bias, eps).chunk(2, dim=1)
    return (silu(gate) * up).to(scaled.dtype)


def _scaled_product(
    scaled: Tensor, squares: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    factor = torch.rsqrt(squares.sum(dim=1, keepdim=True) / scaled.shape[1] + eps)
    product = _product(scaled.float(), weight, None) * factor
    return product if bias is None else product + bias.float()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.float().T
    return product if bias is None else product + bias.float()


def between_attentions(
    residual: Tensor,
    attended: Tensor,
    *,
    o: Tensor,
    post_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    input_norm: Tensor,
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
        norm_weight=post_norm,
        eps=eps,
        next_weight=gate_up,
        next_bias=None,
        gated=True,
    )
    return add_norm_project(
        residual, gated, down, None, norm_weight=input_norm, eps=eps, next_weight=qkv, next_bias=qkv_bias
    )
