"""The linear projection in torch with float32 accumulation: what the kernel must compute."""

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x [T, K]``, ``weight [N, K]`` and ``bias [N]``, rounded once."""
    product = x.float() @ weight.float().T
    if bias is not None:
        product = product + bias.float()
    return product.to(x.dtype)
