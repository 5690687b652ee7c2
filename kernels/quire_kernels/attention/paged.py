"""Paged attention on a GPU for any mixture of sequences: checks shapes, then launches decode and prefill
kernels.

Truth: `attention/reference.py`. Which kernels are launched, and on which grid, depends on the shapes of the tensors
and on `max_query_len`, never on values: any step can be captured in a CUDA graph.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from quire_kernels.attention.balance import schedule_prefill_rows
from quire_kernels.attention.decode import paged_attention_decode, takes_pages
from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.prefill import paged_attention_prefill
from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.attention.tuning import (
    DecodeConfig,
    PrefillConfig,
    decode_config,
    prefill_config,
    prefill_hopper_config,
)
from quire_kernels.gpu import gluon_module, num_multiprocessors


def schedule_prefill(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    num_tokens: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    sliding_window: int | None,
    dtype: torch.dtype = torch.bfloat16,
    k_cache: Tensor | None = None,
    config: PrefillConfig | None = None,
) -> PrefillSchedule:
    """Return the schedule of one step, in device memory, with tuned settings; see `dispatch.schedule_prefill`."""
    if config is None:
        config = _choose_prefill(seq_lens, num_heads, num_kv_heads, head_dim, dtype=dtype, k_cache=k_cache)
    return schedule_prefill_rows(
        query_start_loc,
        seq_lens,
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        sliding_window=sliding_window,
        config=config,
    )


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
    schedule: PrefillSchedule | None = None,
    v_scale: float = 1.0,
    decode: DecodeConfig | None = None,
    new_tokens: NewTokens | None = None,
    settled: bool = False,
) -> Tensor:
    """Return the attention of ``q [T, Hq, D]``; see `reference.paged_attention`, and of ``settled`` `dispatch.paged_attention`.

    ``new_tokens``, of a step without prefill and asked for by `rotates_on_the_way`, are normed, rotated and cached first.

    The tables may be padded by rows without a query token, whose length and blocks may be anything. Without a
    ``schedule`` one is made for this call alone. Values are what the cache holds times ``v_scale``. Rows of q that
    belong to no sequence are left as they were allocated. Raises ``ValueError`` on shapes, strides or a window that the
    kernels cannot take.
    """
    _check(q, k_cache, v_cache, block_tables, query_start_loc, seq_lens, sliding_window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    num_rows, num_kv_heads = seq_lens.shape[0], k_cache.shape[2]
    if q.shape[0] == 0 or num_rows == 0:
        return out
    if schedule is not None and schedule.sliding_window != sliding_window:
        raise ValueError(f"schedule is for window {schedule.sliding_window}; this layer has {sliding_window}")
    tensors = (q, k_cache, v_cache, block_tables, query_start_loc, seq_lens, out)
    if max_query_len > 1:
        assert new_tokens is None
        settled = settled and schedule is not None  # one that is made here has no ordinary launch behind it
        schedule = schedule or _schedule_for_one_layer(q, k_cache, query_start_loc, seq_lens, sliding_window)
    else:
        schedule = None
    if schedule is None or schedule.config.shortest > 1:
        major, _ = _device_facts(q.device)
        by_page = takes_pages(major, num_rows, q, k_cache, v_cache)
        paged_attention_decode(
            *tensors,
            scale=scale,
            sliding_window=sliding_window,
            config=decode or decode_config(major, num_rows, num_kv_heads, max_seq_len, by_page=by_page),
            v_scale=v_scale,
            new_tokens=new_tokens,
        )
    if schedule is not None:
        tensors = (q, k_cache, v_cache, block_tables, out)
        options = {"scale": scale, "v_scale": v_scale, "schedule": schedule}
        if schedule.config.hopper:
            _hopper().paged_attention_prefill_hopper(*tensors, **options, settled=settled)
        else:
            paged_attention_prefill(*tensors, **options)
    return out


def rotates_on_the_way(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, num_rows: int, new_tokens: NewTokens
) -> bool:
    """Whether one launch can norm, rotate and cache the new tokens of a decode step and attend from them."""
    major, _ = _device_facts(q.device)
    return takes_pages(major, num_rows, q, k_cache, v_cache) and new_tokens.suit_pages(q, k_cache, num_rows)


def _choose_prefill(
    seq_lens: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    *,
    dtype: torch.dtype,
    k_cache: Tensor | None,
) -> PrefillConfig:
    """The one place where the prefill kernel of a step is chosen, with its settings."""
    major, processors = _device_facts(seq_lens.device)
    if major == 9 and k_cache is not None and k_cache.dtype == dtype and (hopper := _hopper()):
        config = prefill_hopper_config(processors, num_kv_heads, seq_lens.shape[0])
        if hopper.can_attend(k_cache, num_heads, config):
            return config
    return prefill_config(major, processors, num_kv_heads, head_dim, dtype.itemsize)


def _hopper() -> Any:
    return gluon_module("quire_kernels.attention.prefill_hopper")


def _schedule_for_one_layer(
    q: Tensor, k_cache: Tensor, query_start_loc: Tensor, seq_lens: Tensor, sliding_window: int | None
) -> PrefillSchedule:
    return schedule_prefill(
        query_start_loc,
        seq_lens,
        num_tokens=q.shape[0],
        num_heads=q.shape[1],
        num_kv_heads=k_cache.shape[2],
        head_dim=q.shape[2],
        sliding_window=sliding_window,
        dtype=q.dtype,
        k_cache=k_cache,
    )


@cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """Return the major capability and the number of multiprocessors; small ones under the interpreter."""
    if device.type != "cuda":
        return 0, 4
    return torch.cuda.get_device_capability(device)[0], num_multiprocessors(device)


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
