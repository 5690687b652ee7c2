"""Copies of KV blocks in torch: what the kernel must compute. Does not know why a block is copied."""

from collections.abc import Sequence

from torch import Tensor


def copy_blocks(kv: Sequence[Tensor] | Tensor, pairs: Tensor) -> None:
    """Copy block ``pairs[i, 0]`` onto block ``pairs[i, 1]`` in every layer of ``kv``, keys and values alike.

    ``kv`` is one tensor ``[num_layers, 2, num_blocks, ...]`` or a sequence of tensors ``[num_blocks, ...]``.
    ``pairs`` is int64 ``[n, 2]``. All sources are read before any destination is written; two pairs must not name
    the same destination. A pair ``(0, 0)`` is padding and changes nothing.
    """
    source, destination = pairs[:, 0], pairs[:, 1]
    if isinstance(kv, Tensor):
        kv[:, :, destination] = kv[:, :, source]
        return
    for cache in kv:
        cache[destination] = cache[source]
