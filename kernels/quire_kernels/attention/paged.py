"""Paged attention on a GPU for any mixture of sequences: checks shapes, then launches decode and prefill
kernels.

Truth: `attention/reference.py`. Which kernels are launched depends on `max_query_len` alone, never on values.
"""

import torch
from torch import Tensor

from quire_kernels.attention.decode import paged_attention_decode
from quire_kernels.attention.prefill import paged_attention_prefill
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig, decode_config, prefill_config


def paged_attention_mixed(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
    sliding_window: int | None,
    max_query_len: int,
    max_seq_len: int,
    decode: DecodeConfig | None = None,
    prefill: PrefillConfig | None = None,
) -> Tensor:
    """Return the attention of ``q [T, Hq, D]``; see `reference.paged_attention`.

    Rows of padding, which belong to no sequence, are left as they were allocated. Raises ``ValueError`` on
    shapes, strides or a window that the kernels cannot take.
    """
    _check(q, k_cache, v_cache, block_tables, query_start_loc, seq_lens, sliding_window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if q.shape[0] == 0 or seq_lens.shape[0] == 0:
        return out
    major = torch.cuda.get_device_capability(q.device)[0] if q.is_cuda else 0
    tensors = (q, k_cache, v_cache, block_tables, query_start_loc, seq_lens, out)
    decode = decode or decode_config(major, seq_lens.shape[0], k_cache.shape[2], max_seq_len)
    paged_attention_decode(*tensors, scale=scale, sliding_window=sliding_window, config=decode)
    if max_query_len > 1:
        prefill = prefill or prefill_config(major, q.shape[2], q.element_size())
        paged_attention_prefill(*tensors, scale=scale, sliding_window=sliding_window, config=prefill)
    return out


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    sliding_window: int | None,
) -> None:
    if k_cache.shape != v_cache.shape or k_cache.shape[3] != q.shape[2]:
        raise ValueError(
            f"k_cache is {tuple(k_cache.shape)} and v_cache {tuple(v_cache.shape)}; both must be "
            f"[num_blocks, block_size, num_kv_heads, {q.shape[2]}]"
        )
    if q.shape[1] % k_cache.shape[2]:
        raise ValueError(
            f"q has {q.shape[1]} heads; it must have a multiple of the cache's {k_cache.shape[2]}"
        )
    if query_start_loc.shape[0] != seq_lens.shape[0] + 1 or block_tables.shape[0] != seq_lens.shape[0]:
        raise ValueError(
            f"query_start_loc has {query_start_loc.shape[0]} entries and "
            f"block_tables {block_tables.shape[0]} rows; "
            f"{seq_lens.shape[0]} sequences need {seq_lens.shape[0] + 1} and {seq_lens.shape[0]}"
        )
    if q.stride(2) != 1 or k_cache.stride(3) != 1 or v_cache.stride(3) != 1 or block_tables.stride(1) != 1:
        raise ValueError("the last dimension of q, the caches and block_tables must be contiguous")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"sliding_window is {sliding_window}; it must be at least 1, or None")
