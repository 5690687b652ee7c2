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


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``silu(gate) * up`` of the projections of ``x``: ``weight [2 I, K]`` is that of gate, then of up."""
    gate, up = _product(x.float(), weight, bias).chunk(2, dim=1)
    return (silu(gate) * up).to(x.dtype)


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
    residual = linear_add(residual, attended, o)
    gated = gated_linear(rms_norm(residual, post_norm, eps), gate_up)
    residual = linear_add(residual, gated, down)
    return residual, linear(rms_norm(residual, input_norm, eps), qkv, qkv_bias)
