"""Copies of KV blocks in torch: what the kernel must compute. Does not know why a block is copied."""

from collections.abc import Sequence

from torch import Tensor


def copy_blocks(kv: Sequence[Tensor] | Tensor, pairs: Tensor) -> None:
    """Copy block ``pairs[i, 0]`` onto block ``pairs[i, 1]`` in every layer of ``kv``, keys and values alike.

    ``kv`` is one tensor ``[num_layers, 2, num_blocks, ...]`` or a sequence of tensors ``[num_blocks, ...]``.
    ``pairs`` is int64 ``[n, 2]`` and is applied in order, so a block may be copied on, or overwritten after
    it was read, within one call. A pair ``(0, 0)`` is padding and changes nothing.
    """
    caches = kv.flatten(0, 1).unbind(0) if isinstance(kv, Tensor) else kv
    for source, destination in pairs.tolist():
        for cache in caches:
            cache[destination] = cache[source]
