"""What the kernels of Hopper ask of matrices that TMA copies in boxes, by name. Knows no Gluon and no kernel."""

import torch
from torch import Tensor

_ALIGNMENT = 16  # bytes


def misfit_of_boxes(x: Tensor, weight: Tensor) -> str | None:
    """Why x and weight cannot be copied in boxes and multiplied, or None: 16 bits, one type, rows without gaps that each
    begin where TMA has it.
    """
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"x is of {x.dtype}; it must be of 16 bits"
    if weight.dtype is not x.dtype:
        return f"weight is of {weight.dtype}; it must be of {x.dtype}, as x is"
    for name, tensor in (("x", x), ("weight", weight)):
        if tensor.stride(1) != 1 or tensor.stride(0) * tensor.element_size() % _ALIGNMENT:
            return f"{name} has strides {tensor.stride()}; rows must be contiguous, {_ALIGNMENT} bytes or a multiple apart"
        if tensor.data_ptr() % _ALIGNMENT:
            return f"{name} begins {tensor.data_ptr() % _ALIGNMENT} bytes past a multiple of {_ALIGNMENT}; it must begin at one"
    return None
