"""Triton copy of KV blocks. Truth: `blocks/reference.py`.

A program owns one span of every block of one layer and walks the pairs in order, so copies that build on
each other come out right without any ordering between programs.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.cut import cdiv

_SPAN = 2048  # elements of a block that one program copies


@triton.jit
def _copy_blocks_spans_kernel(
    kv, pairs, num_pairs, plane_stride, block_stride, elements_per_block, SPAN: tl.constexpr
):
    plane = kv + tl.program_id(0).to(tl.int64) * plane_stride
    element = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    inside = element < elements_per_block
    for pair in range(num_pairs):
        source = tl.load(pairs + 2 * pair) * block_stride
        destination = tl.load(pairs + 2 * pair + 1) * block_stride
        values = tl.load(plane + source + element, mask=inside)
        tl.store(plane + destination + element, values, mask=inside)


def copy_blocks_spans(kv: Sequence[Tensor] | Tensor, pairs: Tensor) -> None:
    """Apply the copies ``pairs [n, 2]`` in order to every layer of ``kv``; see `blocks/reference.py`.

    Raises ``ValueError`` when one block is not contiguous or ``pairs`` has another shape.
    """
    if pairs.dim() != 2 or pairs.shape[1] != 2 or not pairs.is_contiguous():
        raise ValueError(f"pairs has shape {tuple(pairs.shape)}; it must be contiguous [n, 2]")
    planes = [kv.flatten(0, 1)] if isinstance(kv, Tensor) else [cache.unsqueeze(0) for cache in kv]
    if pairs.shape[0] == 0:
        return
    for plane in planes:
        if not plane[0, 0].is_contiguous():
            raise ValueError(
                f"a block of strides {plane.stride()[2:]} is not contiguous; copies need whole blocks"
            )
        elements_per_block = plane[0, 0].numel()
        _copy_blocks_spans_kernel[(plane.shape[0], cdiv(elements_per_block, _SPAN))](
            plane,
            pairs,
            pairs.shape[0],
            plane.stride(0),
            plane.stride(1),
            elements_per_block,
            SPAN=_SPAN,
            num_warps=4,
        )
