"""Linear projections in torch with float32 accumulation: what the kernels must compute."""

from torch import Tensor
from torch.nn.functional import silu

from quire_kernels.norm.reference import rms_norm


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]``, ``weight [N, K]`` and ``bias [N]``, rounded once."""
    return _product(x.float(), weight, bias).to(x.dtype)


def linear_add(residual: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``residual [T, N]`` plus the projection of ``x``, rounded once."""
    return (residual.float() + _product(x.float(), weight, bias)).to(residual.dtype)


def rms_norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return the projection of the normalised rows of ``x``."""
    return _product(rms_norm(x.float(), norm_weight.float(), eps), weight, bias).to(x.dtype)


def rms_norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return ``silu(gate) * up`` of the normalised rows of ``x``: ``weight [2 I, K]`` is that of gate, then of up."""
    gate, up = _product(rms_norm(x.float(), norm_weight.float(), eps), weight, bias).chunk(2, dim=1)
    return (silu(gate) * up).to(x.dtype)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.float().T
    return product if bias is None else product + bias.float()
