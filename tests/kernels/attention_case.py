"""Attention over pages of sequences of given lengths, beside its reference."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig

from tests.kernels.case import BLOCK_SIZE, DEVICE, ON_GPU, assert_close, random

HAS_PAGE_COPIES = ON_GPU and torch.cuda.get_device_capability()[0] == 9
HEADS = [(4, 4), (8, 4), (6, 2), (14, 2), (8, 1), (32, 8)] if ON_GPU else [(2, 2), (6, 2), (8, 1)]
BOUNDARIES = [(1, 1), (1, 15), (1, 16), (1, 17), (0, 0), (1, 63), (1, 64), (1, 65)]
MIXED = [(1, 33), (17, 17), (5, 40), (0, 0), (16, 16), (2, 50), (1, 1), (33, 70)]
LONG = [(3, 150), (20, 130), (0, 0), (2, 2), (1, 90), (34, 35)]


def paged_case(
    lengths: list[tuple[int, int]],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    block_size: int = BLOCK_SIZE,
) -> tuple[Tensor, ...]:
    """Make inputs for (query_len, seq_len) pairs; slots that hold no token, and spare table entries, hold
    NaN.
    """
    seq_lens = torch.tensor([seq_len for _, seq_len in lengths], dtype=torch.int32)
    query_lens = torch.tensor([0, *(query_len for query_len, _ in lengths)], dtype=torch.int32)
    max_blocks = -(-int(seq_lens.max()) // block_size) + 1
    num_blocks = 1 + len(lengths) * max_blocks
    tables = (torch.randperm(num_blocks - 1)[: len(lengths) * max_blocks] + 1).view(len(lengths), max_blocks)
    caches = torch.full(
        (2, num_blocks, block_size, num_kv_heads, head_dim), float("nan"), dtype=dtype, device=DEVICE
    )
    for row, (_, seq_len) in enumerate(lengths):
        position = torch.arange(seq_len)
        where = tables[row, position // block_size], position % block_size
        caches[:, where[0].to(DEVICE), where[1].to(DEVICE)] = random(
            2, seq_len, num_kv_heads, head_dim, dtype=dtype
        )
    starts = query_lens.cumsum(0, dtype=torch.int32)
    q = random(int(starts[-1]), num_heads, head_dim, dtype=dtype)
    return q, caches[0], caches[1], tables.int().to(DEVICE), starts.to(DEVICE), seq_lens.to(DEVICE)


def check_attention(
    case: tuple[Tensor, ...],
    window: int | None,
    *,
    decode: DecodeConfig | None = None,
    prefill: PrefillConfig | None = None,
    tuned_for_cache: bool = False,
    padding: int = 0,
    settled: bool = True,
) -> None:
    """Compare with the reference; with ``padding`` tables and q grow by so many poisoned rows, without query tokens.

    Without ``prefill`` its settings are those for any cache, or those for this one, and may name another kernel.
    """
    q, k_cache, v_cache, tables, starts, seq_lens = case
    options = {
        "scale": q.shape[2] ** -0.5,
        "sliding_window": window,
        "max_query_len": int(starts.diff().max()),
        "max_seq_len": int(seq_lens.max()),
    }
    expected = paged_attention(*case, **options)
    num_tokens = q.shape[0]
    poison = torch.randint(-(2**31), 2**31 - 1, (padding,), dtype=torch.int32, device=DEVICE)
    q = torch.cat((q, torch.full_like(q[:1], float("nan")).expand(padding, -1, -1)))
    starts, seq_lens = torch.cat((starts, starts[-1:].expand(padding))), torch.cat((seq_lens, poison))
    tables = torch.cat((tables, poison[:, None].expand(-1, tables.shape[1])))
    schedule = None
    if options["max_query_len"] > 1:
        schedule = schedule_prefill(
            starts,
            seq_lens,
            num_tokens=q.shape[0],
            num_heads=q.shape[1],
            num_kv_heads=k_cache.shape[2],
            head_dim=q.shape[2],
            sliding_window=window,
            dtype=q.dtype,
            k_cache=k_cache if tuned_for_cache else None,
            config=prefill,
        )
    for _ in range(2):  # a second layer finds the scratch memory as the first one left it
        starts = starts.clone()  # the ordinary launch that ``settled`` promises
        actual = paged_attention_mixed(
            q, k_cache, v_cache, tables, starts, seq_lens,
            **options, schedule=schedule, decode=decode, settled=settled,
        )  # fmt: skip
        assert_close(actual[:num_tokens], expected)
