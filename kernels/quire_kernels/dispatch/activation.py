"""Which implementation joins gate and up."""

from torch import Tensor

from quire_kernels.activation import cpu as activation_cpu
from quire_kernels.dispatch import device


def silu_and_mul(x: Tensor) -> Tensor:
    if device.runs_triton(x):
        from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles

        return silu_and_mul_tiles(x)
    return activation_cpu.silu_and_mul(x)
