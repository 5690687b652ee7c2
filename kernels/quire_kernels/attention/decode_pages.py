"""Decode attention for Hopper in Gluon: every program is one warp, to which whole pages are copied (TMA). Truth:
`attention/reference.py`; when to take it is `decode.py`'s business.

One thread asks for a page of one key head by one instruction, so a warp keeps a ring of pages in flight and has time
for the products of those that came. It has a maximum, sum and output of its own and waits for no other warp; the
several programs of a multiprocessor fill each other's gaps at the beginning and the end of a sequence. In a decode step
the new token is rotated and cached here as well (`new_token_tile.py`), which begins the softmax: no page holds it yet.

A page of a head is 16 keys of 256 bytes, and a copy is swizzled at 128 bytes: it lands as two halves of the head
dimension, each 16 rows of 128 bytes.
"""

# Gluon's types know neither its compile-time values nor its launches; views of shared memory have no public name.
# pyright: reportAssignmentType=false, reportIndexIssue=false, reportPrivateUsage=false

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, mma_v2, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from quire_kernels import overlap
from quire_kernels.attention.new_token_tile import (
    layout_of_half,
    load_rotation,
    load_rows,
    rotate_rows,
    rows_of_tile,
    score_of_key,
    store_key,
    whole_rows,
)
from quire_kernels.attention.new_tokens import NewTokens
from quire_kernels.attention.tuning import DecodeConfig
from quire_kernels.box_descriptor import describe_boxes

_PAGE = 16  # keys of a copy
_HALF = 64  # of the head dimension
_MAX_GROUP = 16  # rows of a tensor-core product

_finish_launching = gluon.jit(overlap.finish_launching.fn)
_wait_for_inputs = gluon.jit(overlap.wait_for_inputs.fn)


@gluon.jit
def _places_of_pages(table_row, tile, first_page, last_page, PAGES: gl.constexpr, BLOCK_SIZE: gl.constexpr):
    """The token places in the cache of the one or two pages of a tile; beyond the last page they are that of the last."""
    page = gl.minimum(first_page + tile * PAGES, last_page)
    first = gl.load(table_row + page * 16 // BLOCK_SIZE) * BLOCK_SIZE + page * 16 % BLOCK_SIZE
    second = first
    if PAGES == 2:
        page = gl.minimum(first_page + tile * PAGES + 1, last_page)
        second = gl.load(table_row + page * 16 // BLOCK_SIZE) * BLOCK_SIZE + page * 16 % BLOCK_SIZE
    return first, second


@gluon.jit
def _copy_tile(
    k_pages,
    v_pages,
    places,
    ring,
    arrivals,
    tile,
    num_tiles,
    kv_head,
    STAGES: gl.constexpr,
    PAGES: gl.constexpr,
):
    """Starts the copies of one tile, keys then values, if there is such a tile."""
    stage = tile % STAGES
    live = tile < num_tiles
    arrival = arrivals.index(stage)
    buffer = stage * 2 * PAGES
    mbarrier.expect(arrival, 2 * PAGES * 16 * 256, pred=live)
    for page in gl.static_range(PAGES):
        place = [2 * kv_head, places[page], 0]
        tma.async_copy_global_to_shared(k_pages, place, arrival, ring.index(buffer + page), pred=live)
        tma.async_copy_global_to_shared(v_pages, place, arrival, ring.index(buffer + PAGES + page), pred=live)


@gluon.jit
def _paged_attention_decode_pages_kernel(
    q,
    k_pages,  # [2 * Hkv, num_blocks * BLOCK_SIZE, 64]
    v_pages,
    out,  # [T, Hq, 128]
    partial_out,  # [S, Hq, NUM_SPLITS, 128] float32, used when NUM_SPLITS > 1
    partial_lse,  # [S, Hq, NUM_SPLITS] float32, base 2
    block_tables,
    query_start_loc,
    seq_lens,
    score_scale,  # scale * log2(e)
    value_scale,
    block_table_stride,
    q_token_stride,
    q_head_stride,
    # From here to the last stride: used with NEW_TOKEN, when q is as the projection left it and row i has token i.
    new_k,  # [T, Hkv, 128]
    new_v,
    cos_sin,  # [positions, 128] float32
    positions,
    slot_mapping,
    q_norm_weight,
    k_norm_weight,
    eps,
    k_cache,
    v_cache,
    k_token_stride,
    k_head_stride,
    v_token_stride,
    v_head_stride,
    cos_sin_stride,
    k_slot_stride,
    v_slot_stride,
    SLIDING_WINDOW: gl.constexpr,  # 0: none
    BLOCK_SIZE: gl.constexpr,
    NUM_HEADS: gl.constexpr,
    GROUP: gl.constexpr,
    TILE: gl.constexpr,  # 16 or 32
    STAGES: gl.constexpr,
    NUM_SPLITS: gl.constexpr,
    MIN_SPLIT: gl.constexpr,
    NEW_TOKEN: gl.constexpr,
    HAS_NORM: gl.constexpr,
    EARLY: gl.constexpr,  # tables and pages were written long ago
    OVERLAP: gl.constexpr,
):
    PAGES: gl.constexpr = TILE // 16
    DTYPE: gl.constexpr = q.dtype.element_ty
    SCORES: gl.constexpr = gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, 1], instr_shape=[16, 8]
    )
    LEFT: gl.constexpr = gl.DotOperandLayout(0, SCORES, 2)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, SCORES, 2)
    COPIED: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
    # The same bytes as a tile [TILE, 128]: where each bit of an offset, counted in elements, leads.
    ROW_OF_64: gl.constexpr = [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16], [0, 32]]
    SWIZZLED_ROWS: gl.constexpr = [[1, 8], [2, 16], [4, 32], [8, 0]]
    HALF_AND_PAGE: gl.constexpr = [[0, 64], [16, 0]][:PAGES]
    SEEN: gl.constexpr = gl.SharedLinearLayout(ROW_OF_64 + SWIZZLED_ROWS + HALF_AND_PAGE, alignment=1024)

    _finish_launching(OVERLAP)
    ring = gl.allocate_shared_memory(DTYPE, [STAGES * 2 * PAGES, 2, 16, 64], COPIED)
    tiles = ring._reinterpret(DTYPE, [STAGES * 2, TILE, 128], SEEN)
    arrivals = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for index in gl.static_range(STAGES):
        mbarrier.init(arrivals.index(index), count=1)
    fence_async_shared()
    kv_head = gl.program_id(0)
    split = gl.program_id(1)
    sequence = gl.program_id(2)
    if not EARLY:
        _wait_for_inputs(OVERLAP)
    # Nothing turns away between these loads, so that they are under way together.
    first_token = gl.load(query_start_loc + sequence)
    query_len = gl.load(query_start_loc + sequence + 1) - first_token
    seq_len = gl.load(seq_lens + sequence)
    if NEW_TOKEN:
        token = sequence.to(gl.int64)
        position = gl.load(positions + token)
        slot = gl.load(slot_mapping + token)
    else:
        token = first_token.to(gl.int64)
    first_key = 0
    if SLIDING_WINDOW > 0:
        first_key = gl.maximum(seq_len - SLIDING_WINDOW, 0)
    num_keys = seq_len - first_key
    # As `_split_length` in `decode.py`, for the kernel there merges the parts.
    length = gl.maximum(gl.cdiv(gl.cdiv(num_keys, NUM_SPLITS), TILE) * TILE, MIN_SPLIT)
    begin = first_key + split * length
    end = gl.minimum(begin + length, seq_len)
    if (query_len != 1) | ((split > 0) & (begin >= end)):
        _wait_for_inputs(OVERLAP)  # as every program must before it ends
        return
    if NEW_TOKEN:
        holds_new = end == seq_len
        end = gl.minimum(end, seq_len - 1)  # its last key is not in the cache
    first_page = begin // 16  # whole pages are copied; what lies before begin or after end counts for nothing
    last_page = gl.maximum(end - 1, 0) // 16
    num_tiles = gl.cdiv(end - first_page * 16, TILE)
    if NEW_TOKEN:
        num_tiles = gl.where(end > begin, num_tiles, 0)
    table_row = block_tables + sequence.to(gl.int64) * block_table_stride
    first_places = ()  # of all of them before the first copy, lest each waits for the table anew
    for index in gl.static_range(STAGES):
        places = _places_of_pages(table_row, index, first_page, last_page, PAGES, BLOCK_SIZE)
        first_places = first_places + (places,)  # noqa: RUF005 (Triton unpacks nothing)
    for index in gl.static_range(STAGES):
        _copy_tile(
            k_pages, v_pages, first_places[index], ring, arrivals, index, num_tiles, kv_head, STAGES, PAGES
        )

    q_heads = q + token * q_token_stride + kv_head * GROUP * q_head_stride
    score_key = gl.arange(0, TILE, layout=gl.SliceLayout(0, SCORES))
    if NEW_TOKEN:
        ROWS: gl.constexpr = rows_of_tile(GROUP)
        HALF: gl.constexpr = layout_of_half(ROWS)
        cos, sin = load_rotation(cos_sin + position * cos_sin_stride, HALF)
        first_weight, second_weight = cos, sin
        if HAS_NORM:
            first_weight, second_weight = load_rows(q_norm_weight, k_norm_weight, 0, GROUP, ROWS, HALF)
        _wait_for_inputs(OVERLAP)
        dim = gl.arange(0, 128, layout=gl.BlockedLayout([4], [32], [1], [0]))
        value = gl.load(new_v + token * v_token_stride + kv_head * v_head_stride + dim)
        key_head = new_k + token * k_token_stride + kv_head * k_head_stride
        first, second = load_rows(q_heads, key_head, q_head_stride, GROUP, ROWS, HALF)
        first, second = rotate_rows(first, second, cos, sin, first_weight, second_weight, eps, HAS_NORM)
        store_key(k_cache + slot * k_slot_stride + kv_head * 128, first, second, holds_new, ROWS, HALF)
        gl.store(v_cache + slot * v_slot_stride + kv_head * 128 + dim, value, mask=holds_new)
        queries = whole_rows(first, second, ROWS, LEFT)
        score = score_of_key(queries, ROWS, SCORES, RIGHT) * score_scale
        maximum = gl.where(holds_new, score, -float("inf"))
        total = gl.full([16, TILE], 0.0, gl.float32, layout=SCORES)
        total = gl.where(holds_new & (score_key == 0)[None, :], 1.0, total)
        accumulated = gl.full([16, 128], 0.0, gl.float32, layout=SCORES)
        value = gl.convert_layout(value, gl.SliceLayout(0, SCORES))
        accumulated = gl.where(holds_new, value.to(gl.float32)[None, :], accumulated)
    else:
        q_head = gl.arange(0, 16, layout=gl.SliceLayout(1, LEFT))
        q_dim = gl.arange(0, 128, layout=gl.SliceLayout(0, LEFT))
        q_row = q_heads + q_head * q_head_stride
        queries = gl.load(q_row[:, None] + q_dim[None, :], mask=q_head[:, None] < GROUP, other=0.0)
        maximum = gl.full([16], -float("inf"), gl.float32, layout=gl.SliceLayout(1, SCORES))
        total = gl.full([16, TILE], 0.0, gl.float32, layout=SCORES)  # summed over the keys at the end
        accumulated = gl.full([16, 128], 0.0, gl.float32, layout=SCORES)
    value_key = gl.arange(0, TILE, layout=gl.SliceLayout(1, RIGHT))
    for tile in range(num_tiles):
        places = _places_of_pages(table_row, tile + STAGES, first_page, last_page, PAGES, BLOCK_SIZE)
        stage = tile % STAGES
        mbarrier.wait(arrivals.index(stage), (tile // STAGES) & 1)
        keys = tiles.index(2 * stage).permute((1, 0)).load(RIGHT)
        scores = mma_v2(queries, keys, gl.full([16, TILE], 0.0, gl.float32, layout=SCORES)) * score_scale
        values = tiles.index(2 * stage + 1).load(RIGHT)
        _copy_tile(k_pages, v_pages, places, ring, arrivals, tile + STAGES, num_tiles, kv_head, STAGES, PAGES)
        start = first_page * 16 + tile * TILE
        partial = start + TILE > end
        if SLIDING_WINDOW > 0:
            partial = partial | (start < begin)
        if partial:
            in_range = (start + score_key >= begin) & (start + score_key < end)
            scores = gl.where(in_range[None, :], scores, -float("inf"))
            # A slot without a token may hold anything, and nothing times NaN is NaN.
            values = gl.where((start + value_key < end)[:, None], values, 0.0)
        new_maximum = gl.maximum(maximum, gl.max(scores, axis=1))
        weights = gl.exp2(scores - new_maximum[:, None])
        rescale = gl.exp2(maximum - new_maximum)[:, None]
        total = total * rescale + weights
        accumulated = accumulated * rescale
        accumulated = mma_v2(gl.convert_layout(weights.to(DTYPE), LEFT), values, accumulated)
        maximum = new_maximum

    head = gl.arange(0, 16, layout=gl.SliceLayout(1, SCORES))
    dim = gl.arange(0, 128, layout=gl.SliceLayout(0, SCORES))[None, :]
    mask = head[:, None] < GROUP
    sums = gl.sum(total, axis=1)
    result = accumulated * (value_scale / sums)[:, None]
    if (NUM_SPLITS == 1) or (length >= num_keys):
        row = token * NUM_HEADS + kv_head * GROUP + head
        gl.store(out + row[:, None] * 128 + dim, result.to(DTYPE), mask=mask)
    else:
        part = (sequence.to(gl.int64) * NUM_HEADS + kv_head * GROUP + head) * NUM_SPLITS + split
        gl.store(partial_out + part[:, None] * 128 + dim, result, mask=mask)
        gl.store(partial_lse + part, maximum + gl.log2(sums), mask=head < GROUP)


def copies_pages(capability_major: int, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> bool:
    """Whether the kernel can run on a GPU of this generation, and on tensors of these types, shapes and strides."""
    return (
        capability_major == 9
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype == k_cache.dtype == v_cache.dtype
        and q.shape[2] == 2 * _HALF
        and q.shape[1] <= _MAX_GROUP * k_cache.shape[2]
        and k_cache.shape[1] % _PAGE == 0
        and all(_is_rows_of_tokens(cache) for cache in (k_cache, v_cache))
    )


def launch_decode_pages(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    out: Tensor,
    partial_out: Tensor,
    partial_lse: Tensor,
    block_tables: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    *,
    score_scale: float,
    v_scale: float,
    sliding_window: int | None,
    config: DecodeConfig,
    overlap_launches: bool,
    new_tokens: NewTokens | None = None,
) -> None:
    """Attend as `decode.paged_attention_decode` does, but leave the parts of split sequences to be merged."""
    num_heads, num_kv_heads = q.shape[1], k_cache.shape[2]
    has_norm = new_tokens is not None and new_tokens.q_norm_weight is not None
    _paged_attention_decode_pages_kernel[(num_kv_heads, config.num_splits, seq_lens.shape[0])](
        q,
        _pages(k_cache),
        _pages(v_cache),
        out,
        partial_out,
        partial_lse,
        block_tables,
        query_start_loc,
        seq_lens,
        score_scale,
        v_scale,
        block_tables.stride(0),
        *q.stride()[:2],
        *_arguments(new_tokens, q, k_cache, v_cache),
        SLIDING_WINDOW=sliding_window or 0,
        BLOCK_SIZE=k_cache.shape[1],
        NUM_HEADS=num_heads,
        GROUP=num_heads // num_kv_heads,
        TILE=config.tile,
        STAGES=config.num_stages,
        NUM_SPLITS=config.num_splits,
        MIN_SPLIT=config.min_split,
        NEW_TOKEN=new_tokens is not None,
        HAS_NORM=has_norm,
        EARLY=new_tokens is not None and new_tokens.settled,
        OVERLAP=overlap_launches,
        num_warps=1,
        **overlap.launch_options(overlap_launches),
    )


def _arguments(new: NewTokens | None, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> tuple[Any, ...]:
    """What the kernel is told of new tokens, or as much that it does not look at."""
    if new is None:
        return (*(q,) * 7, 0.0, *(q,) * 2, *(0,) * 7)
    return (
        new.k,
        new.v,
        new.cos_sin,
        new.positions,
        new.slot_mapping,
        q if new.q_norm_weight is None else new.q_norm_weight,
        q if new.k_norm_weight is None else new.k_norm_weight,
        new.eps,
        k_cache,
        v_cache,
        *new.k.stride()[:2],
        *new.v.stride()[:2],
        new.cos_sin.stride(0),
        k_cache.stride(1),
        v_cache.stride(1),
    )


def _is_rows_of_tokens(cache: Tensor) -> bool:
    """Whether blocks follow one another as tokens do, and heads within a token, on addresses that copies can take."""
    block_stride, slot_stride, head_stride, _ = cache.stride()
    return (
        block_stride == cache.shape[1] * slot_stride
        and head_stride == cache.shape[3]
        and slot_stride % 8 == 0
        and cache.data_ptr() % 16 == 0
    )


def _pages(cache: Tensor) -> TensorDescriptor:
    """The cache ``[num_blocks, block_size, Hkv, 128]`` as ``[2 * Hkv, tokens, 64]``, of which a box is a page of a head."""
    num_blocks, block_size, num_kv_heads, _ = cache.shape
    shape, strides = [2 * num_kv_heads, num_blocks * block_size, _HALF], [_HALF, cache.stride(1), 1]
    return describe_boxes(cache, shape, strides, [2, _PAGE, _HALF])
