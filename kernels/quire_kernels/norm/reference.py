"""RMSNorm in torch: what the fused kernels must compute. Knows nothing of models or devices."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Scale each vector of the last dimension to unit root mean square, then by ``weight`` where there is one.

    ``x`` is ``[..., D]`` and ``weight`` ``[D]``; the arithmetic is float32 whatever the dtype of ``x``, and
    the result has the dtype of ``x``. Source: Zhang and Sennrich, "Root Mean Square Layer Normalization"
    (2019).
    """
    wide = x.float()
    inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    normed = wide * inverse_rms
    return (normed if weight is None else normed * weight.float()).to(x.dtype)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return ``(rms_norm(x + residual), x + residual)``.

    The sum is rounded to the dtype of ``residual`` before it is normalised, so that the fused form equals the
    two separate steps.
    """
    new_residual = (x.float() + residual.float()).to(residual.dtype)
    return rms_norm(new_residual, weight, eps).to(x.dtype), new_residual
