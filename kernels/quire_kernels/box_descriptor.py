"""Descriptors by which kernels in Gluon have tensors copied in boxes, by TMA.

Gluon is an experiment of Triton's: whoever imports this module must be ready for an ImportError or AttributeError.
"""

from functools import cache

import torch
import triton.experimental.gluon.language as gl
from torch import Tensor
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor


def describe_boxes(tensor: Tensor, shape: list[int], strides: list[int], box: list[int]) -> TensorDescriptor:
    """Describe a tensor of 16 bits as one of this shape and these strides, in elements, of which a box is copied at a time."""
    return TensorDescriptor(tensor, shape, strides, box, _layout(tuple(box), tensor.dtype))


# Made once for each box: making one takes longer than the rest of a descriptor, and a step has two or three for every product.
@cache
def _layout(box: tuple[int, ...], dtype: torch.dtype) -> gl.NVMMASharedLayout:
    element = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for(list(box), element)
