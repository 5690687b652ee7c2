"""Which implementation normalises."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.norm import cpu as norm_cpu
from quire_kernels.norm import reference as norm_reference


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if device.runs_triton(x):
        from quire_kernels.norm.rows import rms_norm_rows

        return rms_norm_rows(x, weight, eps)
    return norm_cpu.rms_norm(x, weight, eps)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if device.runs_triton(x):
        from quire_kernels.norm.rows import fused_add_rms_norm_rows

        return fused_add_rms_norm_rows(x, residual, weight, eps)
    return norm_reference.fused_add_rms_norm(x, residual, weight, eps)
