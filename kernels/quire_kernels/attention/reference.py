"""Paged attention in torch, one sequence at a time: the truth for every faster path, on any device."""

import torch
from torch import Tensor

from quire_kernels.rotary.reference import rotary_embedding_and_cache


def paged_attention(
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
) -> Tensor:
    """Attend from each query token to the cached keys of its sequence up to its own position.

    ``q [T, Hq, D]`` holds the query rows of sequence ``i`` at ``query_start_loc[i] : query_start_loc[i +
    1]``; they are the last tokens of its ``seq_lens[i]`` cached ones. With ``sliding_window`` w, position p
    sees ``(p - w, p]``. Caches are ``[num_blocks, block_size, Hkv, D]``, read through ``block_tables [S,
    max_blocks]``. Rows that belong to no sequence, or that see no key, come out as zeros. Scores, weights
    and sums are float32. ``max_query_len`` and ``max_seq_len`` are upper bounds that only size the work of
    other implementations.
    """
    out = torch.zeros_like(q)
    block_size = k_cache.shape[1]
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    for sequence, seq_len in enumerate(lengths):
        start, end = starts[sequence], starts[sequence + 1]
        if start == end or seq_len == 0:
            continue
        blocks = block_tables[sequence, : -(-seq_len // block_size)].long()
        keys = k_cache[blocks].flatten(0, 1)[:seq_len]  # [seq_len, Hkv, D]
        values = v_cache[blocks].flatten(0, 1)[:seq_len]
        out[start:end] = _attend(q[start:end], keys, values, scale, sliding_window).to(q.dtype)
    return out


def rotary_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    q_norm_weight: Tensor | None,
    k_norm_weight: Tensor | None,
    eps: float,
    scale: float,
    sliding_window: int | None,
    max_seq_len: int,
) -> Tensor:
    """Norm, rotate and cache the new token of every sequence, as `rotary.reference` does, then attend from it.

    ``q [T, Hq, D]``, ``k`` and ``v [T, Hkv, D]`` are as the projection left them; a sequence has one query token or none.
    No row reads a place that another row of this step writes: here it would find the new content, elsewhere perhaps not.
    """
    rotated = rotary_embedding_and_cache(
        q, k, v, cos_sin, positions, k_cache, v_cache, slot_mapping, q_norm_weight, k_norm_weight, eps
    )
    return paged_attention(
        rotated,
        k_cache,
        v_cache,
        block_tables,
        query_start_loc,
        seq_lens,
        scale=scale,
        sliding_window=sliding_window,
        max_query_len=1,
        max_seq_len=max_seq_len,
    )


def visible_keys(query_len: int, seq_len: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """Return the boolean mask ``[query_len, seq_len]`` of the keys each of the last ``query_len`` positions
    sees.
    """
    key = torch.arange(seq_len, device=device)
    position = torch.arange(seq_len - query_len, seq_len, device=device).unsqueeze(1)
    visible = key <= position
    if sliding_window is not None:
        visible &= key > position - sliding_window
    return visible


def _attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, sliding_window: int | None) -> Tensor:
    query_len, num_heads, _ = q.shape
    seq_len, num_kv_heads, _ = keys.shape
    group = num_heads // num_kv_heads
    keys = keys.float().repeat_interleave(group, dim=1)
    values = values.float().repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    visible = visible_keys(query_len, seq_len, sliding_window, q.device)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values)
