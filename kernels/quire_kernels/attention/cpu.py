"""Paged attention for processors: gathers the keys of many short queries at once and leaves the rest to torch.

Decode rows are grouped into padded batches of similar length, so that one call serves many sequences; the query heads
that share a key head are laid side by side as query rows, so keys are never repeated. Padding reads a key of its own
sequence again, under a mask, so that no unwritten place is ever looked at. Same contract as
`reference.paged_attention`, against which it is tested; the caches must be contiguous. Reads lengths on the host, so
it is no use on a GPU.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

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
    batch = _batch_of(block_tables, query_start_loc, seq_lens, k_cache.shape[1])
    keys, values = (cache.view(-1, *cache.shape[2:]) for cache in (k_cache, v_cache))  # [num_slots, Hkv, D]
    out = torch.zeros_like(q) if batch.has_idle_rows(q) else torch.empty_like(q)
    for chunk in batch.chunks:
        rows = slice(chunk.start, chunk.start + chunk.query_len)
        out[rows] = _extend(q[rows], keys, values, chunk, scale, sliding_window)
    for group in batch.groups(sliding_window):
        attended = _decode(q.index_select(0, group.rows), keys, values, group, scale)
        out.index_copy_(0, group.rows, attended)
    return out


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Several last tokens of one sequence."""

    start: int
    query_len: int
    slots: Tensor  # [seq_len]: cache slot of each of its tokens


@dataclass(frozen=True, slots=True)
class _Group:
    """The last token of each of G sequences, whose keys are padded to the L of the longest."""

    rows: Tensor  # [G]: row of each query
    slots: Tensor  # [G * L]: cache slot of each key
    mask: Tensor | None  # [G, 1, 1, L] float32, added to the scores; None where nothing is padding


@dataclass(frozen=True, slots=True)
class _Batch:
    """The layout of a batch. Every layer of a step has the same one, so the latest is kept, with what it was made of."""

    block_tables: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_size: int
    chunks: list[_Chunk]
    decoding: list[tuple[int, int, int]]
    """(seq_len, row, sequence), shortest first."""
    num_rows: int
    groups_of_window: dict[int | None, list[_Group]] = field(default_factory=dict)

    def is_of(self, block_tables: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_size: int) -> bool:
        """Whether the same batch is asked for again: compared by value, since callers may reuse their tensors."""
        return (
            block_size == self.block_size
            and torch.equal(seq_lens, self.seq_lens)
            and torch.equal(query_start_loc, self.query_start_loc)
            and torch.equal(block_tables, self.block_tables)
        )

    def has_idle_rows(self, q: Tensor) -> bool:
        """Whether rows of `q` belong to no sequence."""
        return self.num_rows < q.shape[0]

    def groups(self, sliding_window: int | None) -> list[_Group]:
        """The decoding sequences, grouped."""
        if sliding_window not in self.groups_of_window:
            spans = [(min(seq_len, sliding_window or seq_len), *rest) for seq_len, *rest in self.decoding]
            self.groups_of_window[sliding_window] = [self._group(each) for each in _similar(spans)]
        return self.groups_of_window[sliding_window]

    def _group(self, members: list[tuple[int, int, int]]) -> _Group:
        spans, rows, sequences = (torch.tensor(column) for column in zip(*members, strict=True))
        lengths = self.seq_lens[sequences].unsqueeze(1)
        age = torch.arange(int(spans.max()))  # of a key, in tokens before its query
        is_padding = age >= spans.unsqueeze(1)
        position = lengths - 1 - torch.where(is_padding, 0, age)
        blocks = self.block_tables[sequences].gather(1, (position // self.block_size).long())
        slots = blocks.long() * self.block_size + position % self.block_size
        mask = torch.zeros(is_padding.shape).masked_fill_(is_padding, float("-inf"))
        return _Group(rows, slots.flatten(), mask[:, None, None] if bool(is_padding.any()) else None)


_latest: _Batch | None = None


def _batch_of(block_tables: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_size: int) -> _Batch:
    global _latest
    latest = _latest
    if latest is None or not latest.is_of(block_tables, query_start_loc, seq_lens, block_size):
        _latest = latest = _lay_out(
            block_tables.clone(), query_start_loc.clone(), seq_lens.clone(), block_size
        )
    return latest


def _lay_out(block_tables: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_size: int) -> _Batch:
    starts = query_start_loc.tolist()
    chunks: list[_Chunk] = []
    decoding: list[tuple[int, int, int]] = []
    num_rows = 0
    for sequence, seq_len in enumerate(seq_lens.tolist()):
        start, query_len = starts[sequence], starts[sequence + 1] - starts[sequence]
        if query_len == 0 or seq_len == 0:
            continue
        num_rows += query_len
        if query_len == 1:
            decoding.append((seq_len, start, sequence))
        else:
            position = torch.arange(seq_len)
            blocks = block_tables[sequence, position // block_size].long()
            chunks.append(_Chunk(start, query_len, blocks * block_size + position % block_size))
    return _Batch(block_tables, query_start_loc, seq_lens, block_size, chunks, sorted(decoding), num_rows)


def _similar(members: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    """Yield members sorted by length in groups, each within the bounds on padding and on gathered keys."""
    group: list[tuple[int, int, int]] = []
    for member in members:
        length = member[0]
        if group and (
            length > group[0][0] * _MAX_PADDING + 16 or (len(group) + 1) * length > _MAX_GROUP_TOKENS
        ):
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _extend(
    q: Tensor, keys: Tensor, values: Tensor, chunk: _Chunk, scale: float, sliding_window: int | None
) -> Tensor:
    """Attend from the last tokens of one sequence: ``q [query_len, Hq, D]`` to the same shape."""
    query_len, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    own_keys = _gathered(keys, chunk.slots, q.dtype).transpose(0, 1)  # [Hkv, seq_len, D]
    own_values = _gathered(values, chunk.slots, q.dtype).transpose(0, 1)
    queries = q.view(query_len, num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)  # [Hkv, group, query_len, D]
    attended = scaled_dot_product_attention(
        queries,
        own_keys.unsqueeze(1).expand(-1, num_heads // num_kv_heads, -1, -1),
        own_values.unsqueeze(1).expand(-1, num_heads // num_kv_heads, -1, -1),
        attn_mask=visible_keys(query_len, len(chunk.slots), sliding_window, q.device),
        scale=scale,
    )
    return attended.permute(2, 0, 1, 3).reshape(query_len, num_heads, head_dim)


def _decode(q: Tensor, keys: Tensor, values: Tensor, group: _Group, scale: float) -> Tensor:
    """Attend from one token of each sequence: ``q [G, Hq, D]`` to the same shape."""
    num_rows, num_heads, head_dim = q.shape
    shape = (num_rows, -1, *keys.shape[1:])
    attended = scaled_dot_product_attention(
        q.view(num_rows, keys.shape[1], -1, head_dim),
        _gathered(keys, group.slots, q.dtype).view(shape).transpose(1, 2),  # [G, Hkv, L, D]
        _gathered(values, group.slots, q.dtype).view(shape).transpose(1, 2),
        attn_mask=None if group.mask is None else group.mask.to(q.dtype),
        scale=scale,
    )
    return attended.reshape(num_rows, num_heads, head_dim)


def _gathered(rows: Tensor, slots: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the rows of ``slots``; torch gathers no 8-bit floats on a processor, so those go as bytes."""
    if rows.element_size() > 1:
        return rows.index_select(0, slots)
    return rows.view(torch.uint8).index_select(0, slots).view(rows.dtype).to(dtype)
