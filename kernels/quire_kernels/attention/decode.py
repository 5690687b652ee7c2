"""Triton paged attention for sequences with one query token, split over the keys. Truth:
`attention/reference.py`.

Each program attends from the query heads that share one key head to one span of the keys (Flash-Decoding;
Dao et al., 2023); spans are merged by their log-sum-exp. How a sequence is cut is decided on the device from
its length, so one captured launch serves every length. Sequences with any other number of query tokens are
left to `prefill.py`. On Hopper `decode_pages.py` has a faster kernel for the usual types and shapes; parts are merged here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.tuning import DecodeConfig
from quire_kernels.cut import next_power_of_2
from quire_kernels.gpu import gluon_module
from quire_kernels.overlap import (
    finish_launching,
    launch_options,
    overlaps_launches,
    wait_for_inputs,
)

decode_pages = gluon_module("quire_kernels.attention.decode_pages")

_LOG2_E = 1.4426950408889634
_MANY_SPLITS = (
    64  # more than one warp merges without spilling registers: 40 us instead of 47 at 1 x 32,768 on an H200
)


@triton.jit
def _split_length(num_keys, NUM_SPLITS: tl.constexpr, TILE: tl.constexpr, MIN_SPLIT: tl.constexpr):
    """Keys per split: a multiple of TILE, at least MIN_SPLIT, so that NUM_SPLITS of them cover all keys."""
    return tl.maximum(tl.cdiv(tl.cdiv(num_keys, NUM_SPLITS), TILE) * TILE, MIN_SPLIT)


@triton.jit
def _paged_attention_decode_kernel(
    q,
    k_cache,
    v_cache,
    out,  # [T, Hq, D]
    partial_out,  # [S, Hq, NUM_SPLITS, D] float32, used when NUM_SPLITS > 1
    partial_lse,  # [S, Hq, NUM_SPLITS] float32, base 2
    block_tables,
    query_start_loc,
    seq_lens,
    score_scale,  # scale * log2(e)
    value_scale,
    block_table_stride,
    q_token_stride,
    q_head_stride,
    k_block_stride,
    k_slot_stride,
    k_head_stride,
    v_block_stride,
    v_slot_stride,
    v_head_stride,
    SLIDING_WINDOW: tl.constexpr,  # 0: none
    BLOCK_SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    sequence = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    token = tl.load(query_start_loc + sequence).to(tl.int64)
    if tl.load(query_start_loc + sequence + 1) - token != 1:
        return
    seq_len = tl.load(seq_lens + sequence)
    first_key = 0
    if SLIDING_WINDOW > 0:
        first_key = tl.maximum(seq_len - SLIDING_WINDOW, 0)
    length = _split_length(seq_len - first_key, NUM_SPLITS, TILE, MIN_SPLIT)
    begin = first_key + split * length
    end = tl.minimum(begin + length, seq_len)
    if (split > 0) & (begin >= end):
        return

    row = tl.arange(0, GROUP_ROWS)
    dim = tl.arange(0, WIDTH)
    head = kv_head * GROUP + row
    q_mask = (row[:, None] < GROUP) & (dim[None, :] < HEAD_DIM)
    queries = tl.load(
        q + token * q_token_stride + head[:, None] * q_head_stride + dim[None, :], mask=q_mask, other=0.0
    )
    maximum = tl.full([GROUP_ROWS], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_ROWS], tl.float32)
    accumulated = tl.zeros([GROUP_ROWS, WIDTH], tl.float32)
    table_row = block_tables + sequence.to(tl.int64) * block_table_stride
    place = tl.arange(0, TILE)
    if NUM_SPLITS == 1:
        # The table is read one tile ahead: as a stage of its own in the pipeline it would take the place of one of keys.
        # (Short parts lose more by the first wait than they gain.)
        following = tl.load(table_row + (begin + place) // BLOCK_SIZE, mask=place < end - begin, other=0)
    for start in range(begin, end, TILE):
        key = start + place
        in_range = key < end
        if NUM_SPLITS == 1:
            block = following.to(tl.int64)
            following = tl.load(table_row + (key + TILE) // BLOCK_SIZE, mask=key + TILE < end, other=0)
        else:
            block = tl.load(table_row + key // BLOCK_SIZE, mask=in_range, other=0).to(tl.int64)
        slot = key % BLOCK_SIZE
        k_row = k_cache + block * k_block_stride + slot * k_slot_stride + kv_head * k_head_stride
        v_row = v_cache + block * v_block_stride + slot * v_slot_stride + kv_head * v_head_stride
        inside = in_range[:, None] & (dim[None, :] < HEAD_DIM)
        keys = tl.load(k_row[:, None] + dim[None, :], mask=inside, other=0.0).to(queries.dtype)
        values = tl.load(v_row[:, None] + dim[None, :], mask=inside, other=0.0).to(queries.dtype)
        scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * score_scale
        scores = tl.where(in_range[None, :], scores, -float("inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_maximum[:, None])
        rescale = tl.exp2(maximum - new_maximum)
        total = total * rescale + tl.sum(weights, axis=1)
        accumulated = accumulated * rescale[:, None]
        accumulated += tl.dot(weights.to(queries.dtype), values, input_precision=PRECISION)
        maximum = new_maximum

    result = accumulated * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    if (NUM_SPLITS == 1) or (length >= seq_len - first_key):
        target = out + (token * NUM_HEADS + head[:, None]) * HEAD_DIM + dim[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=q_mask)
    else:
        part = (sequence.to(tl.int64) * NUM_HEADS + head) * NUM_SPLITS + split
        tl.store(partial_out + part[:, None] * HEAD_DIM + dim[None, :], result, mask=q_mask)
        tl.store(partial_lse + part, maximum + tl.log2(total), mask=row < GROUP)


@triton.jit
def _paged_attention_merge_kernel(
    partial_out,
    partial_lse,
    out,
    query_start_loc,
    seq_lens,
    SLIDING_WINDOW: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    sequence = tl.program_id(0)
    head = tl.program_id(1)
    token = tl.load(query_start_loc + sequence).to(tl.int64)
    if tl.load(query_start_loc + sequence + 1) - token != 1:
        return
    num_keys = tl.load(seq_lens + sequence)
    if SLIDING_WINDOW > 0:
        num_keys = tl.minimum(num_keys, SLIDING_WINDOW)
    num_parts = tl.cdiv(num_keys, _split_length(num_keys, NUM_SPLITS, TILE, MIN_SPLIT))
    if num_parts <= 1:  # a sequence of one part is in the output already
        return
    split = tl.arange(0, NUM_SPLITS)
    dim = tl.arange(0, WIDTH)
    part = (sequence.to(tl.int64) * NUM_HEADS + head) * NUM_SPLITS + split
    used = split < num_parts
    lse = tl.load(partial_lse + part, mask=used, other=-float("inf"))
    weight = tl.where(used, tl.exp2(lse - tl.max(lse, axis=0)), 0.0)
    inside = used[:, None] & (dim[None, :] < HEAD_DIM)
    parts = tl.load(partial_out + part[:, None] * HEAD_DIM + dim[None, :], mask=inside, other=0.0)
    total = tl.sum(weight, axis=0)
    merged = tl.sum(parts * weight[:, None], axis=0) / tl.where(total == 0.0, 1.0, total)
    target = out + (token * NUM_HEADS + head) * HEAD_DIM + dim
    tl.store(target, merged.to(out.dtype.element_ty), mask=dim < HEAD_DIM)


def takes_pages(capability_major: int, num_rows: int, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> bool:
    """Whether a config is to be ``by_page``: the GPU, the installed Triton and the tensors allow it, and there are rows
    enough. Alone it wins for one row too, but a whole step of one row of the Llama-3.1-8B shape was seen to take 4.14 ms
    with it and 3.91 without. Most likely the memory that it shares is missing as cache to the matrix-vector products after
    it: such a loss was seen after any kernel that shares much.
    """
    return (
        num_rows > 1
        and decode_pages is not None
        and decode_pages.copies_pages(capability_major, q, k_cache, v_cache)
    )


def paged_attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    out: Tensor,
    *,
    scale: float,
    v_scale: float = 1.0,
    sliding_window: int | None,
    config: DecodeConfig,
    new_tokens: NewTokens | None = None,
) -> None:
    """Fill the rows of ``out [T, Hq, D]`` (contiguous) that belong to sequences with exactly one query token.

    Shapes are those of `reference.paged_attention` and are checked by the caller, who has asked `takes_pages` before a
    config is ``by_page``. No other row is written. With ``new_tokens``, which suit a config that is ``by_page``, q is as
    the projection left it and the last key of every sequence is not in the cache; both is seen to on the way.
    """
    num_sequences, (_, num_heads, head_dim), num_kv_heads = seq_lens.shape[0], q.shape, k_cache.shape[2]
    group = num_heads // num_kv_heads
    width = max(16, next_power_of_2(head_dim))
    num_splits = config.num_splits
    partial_out, partial_lse = out, out
    if num_splits > 1:
        shape = (num_sequences, num_heads, num_splits)
        partial_out = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
        partial_lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    overlap = overlaps_launches(q.device)
    tensors = (out, partial_out, partial_lse, block_tables, query_start_loc, seq_lens)
    cut = {
        "SLIDING_WINDOW": sliding_window or 0,
        "NUM_HEADS": num_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": width,
        "TILE": config.tile,
        "NUM_SPLITS": num_splits,
        "MIN_SPLIT": config.min_split,
        "OVERLAP": overlap,
        **launch_options(overlap),
    }
    if config.by_page:
        decode_pages.launch_decode_pages(
            q,
            k_cache,
            v_cache,
            *tensors,
            score_scale=scale * _LOG2_E,
            v_scale=v_scale,
            sliding_window=sliding_window,
            config=config,
            overlap_launches=overlap,
            new_tokens=new_tokens,
        )
    else:
        assert new_tokens is None
        _paged_attention_decode_kernel[(num_sequences, num_kv_heads, num_splits)](
            q,
            k_cache,
            v_cache,
            *tensors,
            scale * _LOG2_E,
            v_scale,
            block_tables.stride(0),
            *q.stride()[:2],
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            BLOCK_SIZE=k_cache.shape[1],
            GROUP=group,
            GROUP_ROWS=max(16, next_power_of_2(group)),
            PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            **cut,
        )
    if num_splits > 1:
        _paged_attention_merge_kernel[(num_sequences, num_heads)](
            partial_out,
            partial_lse,
            out,
            query_start_loc,
            seq_lens,
            num_warps=2 if num_splits >= _MANY_SPLITS else 1,
            **cut,
        )
