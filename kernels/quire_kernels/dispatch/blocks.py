"""Which implementation copies KV blocks."""

from collections.abc import Sequence

from torch import Tensor

from quire_kernels.blocks import reference as blocks_reference
from quire_kernels.dispatch import device


def copy_blocks(kv: Sequence[Tensor] | Tensor, pairs: Tensor) -> None:
    if device.runs_triton(pairs):
        from quire_kernels.blocks.copy import copy_blocks_spans

        copy_blocks_spans(kv, pairs)
    else:
        blocks_reference.copy_blocks(kv, pairs)
