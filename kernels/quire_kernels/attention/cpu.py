"""Paged attention for processors: gathers the pages of many short queries at once and leaves the rest to
torch.

Decode rows are grouped into padded batches of similar length, so that one matrix product serves many
sequences; the query heads that share a key head are laid side by side as query rows, so keys are never
repeated. Same contract as `reference.paged_attention`, against which it is tested. Reads lengths on the
host, so it is no use on a GPU.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from quire_kernels.attention.reference import visible_keys

_MAX_PADDING = 1.25  # a group holds sequences up to this times longer than its shortest one
_MAX_GROUP_TOKENS = 16384  # and at most this many gathered keys, which bounds the memory of the copy


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
    """Return the attention of ``q [T, Hq, D]`` over its paged keys; see `reference.paged_attention`."""
    out = torch.zeros_like(q)
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    decoding: list[int] = []
    for sequence, seq_len in enumerate(lengths):
        start, end = starts[sequence], starts[sequence + 1]
        if end - start == 1 and seq_len > 0:
            decoding.append(sequence)
        elif end > start and seq_len > 0:
            blocks = block_tables[sequence]
            out[start:end] = _extend(q[start:end], k_cache, v_cache, blocks, seq_len, scale, sliding_window)
    for group in _groups_of_similar_length(decoding, lengths):
        rows = [starts[sequence] for sequence in group]
        longest = lengths[group[-1]]
        out[rows] = _decode(
            q[rows], k_cache, v_cache, block_tables[group], seq_lens[group], longest, scale, sliding_window
        )
    return out


def _groups_of_similar_length(sequences: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Yield the sequences in groups sorted by length, each within the bounds on padding and on gathered
    keys.
    """
    group: list[int] = []
    for sequence in sorted(sequences, key=lengths.__getitem__):
        length = lengths[sequence]
        if group and (
            length > lengths[group[0]] * _MAX_PADDING + 16 or (len(group) + 1) * length > _MAX_GROUP_TOKENS
        ):
            yield group
            group = []
        group.append(sequence)
    if group:
        yield group


def _extend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_table: Tensor,
    seq_len: int,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Attend from the last ``query_len`` tokens of one sequence: ``q [query_len, Hq, D]`` to the same
    shape.
    """
    query_len, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    blocks = block_table[: -(-seq_len // block_size)]
    keys = k_cache[blocks].flatten(0, 1)[:seq_len].transpose(0, 1)  # [Hkv, seq_len, D]
    values = v_cache[blocks].flatten(0, 1)[:seq_len].transpose(0, 1)
    queries = q.view(query_len, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)  # [Hkv, group, query_len, D]
    visible = visible_keys(query_len, seq_len, sliding_window, q.device)
    attended = scaled_dot_product_attention(
        queries,
        keys.unsqueeze(1).expand(-1, num_heads // num_kv_heads, -1, -1),
        values.unsqueeze(1).expand(-1, num_heads // num_kv_heads, -1, -1),
        attn_mask=visible,
        scale=scale,
    )
    return attended.permute(2, 0, 1, 3).reshape(query_len, num_heads, head_dim)


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    longest: int,
    scale: float,
    sliding_window: int | None,
) -> Tensor:
    """Attend from one token of each sequence: ``q [G, Hq, D]`` to the same shape, keys padded to
    ``longest``.
    """
    num_rows, num_heads, head_dim = q.shape
    block_size, num_kv_heads = k_cache.shape[1:3]
    blocks = block_tables[:, : -(-longest // block_size)]
    key_position = torch.arange(longest)
    visible = key_position < seq_lens.unsqueeze(1)  # [G, longest]
    if sliding_window is not None:
        visible &= key_position >= seq_lens.unsqueeze(1) - sliding_window
    keys = k_cache[blocks].flatten(1, 2)[:, :longest].transpose(1, 2)  # [G, Hkv, longest, D]
    values = v_cache[blocks].flatten(1, 2)[:, :longest].transpose(1, 2)
    if not bool(visible.all()):
        # A masked key has weight zero, and zero times a stale infinity or NaN of an unwritten slot is NaN.
        values = values.masked_fill(~visible[:, None, :, None], 0)
        keys = keys.masked_fill(~visible[:, None, :, None], 0)
    attended = scaled_dot_product_attention(
        q.view(num_rows, num_kv_heads, -1, head_dim),
        keys,
        values,
        attn_mask=visible[:, None, None],
        scale=scale,
    )
    return attended.reshape(num_rows, num_heads, head_dim)
