"""What a device runs: whether Triton is there for it, and which kernels its capability allows.

Every other room asks here, as `device.runs_triton(x)`, so that a test which stands in for a GPU has one place to say so.
Knows no shape and no operation but attention, whose implementation it can name.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from quire_kernels.attention import cpu as attention_cpu
from quire_kernels.attention import reference as attention_reference


def runs_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda and _triton_is_installed()


def attention_implementation(device: torch.device) -> str:
    """The module that attends on tensors of `device`."""
    if device.type == "cuda" and _triton_is_installed():
        return "quire_kernels.attention.paged (Triton)"
    return (attention_cpu if device.type == "cpu" else attention_reference).__name__


@cache
def holds_deep_pipelines(device: torch.device) -> bool:
    """Whether a program has 227 KB of shared memory, and launches overlap: Hopper and Blackwell of data centres. Others
    have 163 or 99 KB.
    """
    return torch.cuda.get_device_capability(device)[0] in (9, 10)


@cache
def is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == 9


@cache
def _triton_is_installed() -> bool:
    return find_spec("triton") is not None
