"""Triton sampler: thresholds without sorting, then a noisy argmax over tiles. Truth: `sampling/reference.py`.

Three launches of fixed size, none of which waits for the host:
`threshold`  one program per row finds the smallest scaled logit that the row's masks keep (rows without
masks exit); `tiles`      every tile of every row finds its best token, drawing noise where the row is not
greedy; `winner`     one program per row reduces its tiles.

The threshold of top-k, and of top-p over what top-k left, is the largest value at or above which lies enough
weight (a count, or a mass). It is built bit by bit from the top over integers ordered as the floats are (a
radix search).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.sampling.params import SamplingTensors

_TILE = 4096  # tokens per program of `tiles`
_SEARCH_TILE = 8192  # tokens per step of a search pass
_LOG2_E = tl.constexpr(1.4426950408889634)
_SERIES_LIMIT = tl.constexpr(2.0**-8)
# Bits of a float32 that can differ between values of a narrower type: the search looks at no others.
_SIGNIFICANT_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 19}


@triton.jit
def _ordered_key(values):
    """Map float32 to int32 so that the order is kept; minus zero counts as zero."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _value_of_key(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _weight_from(
    row,
    vocab_size,
    key_floor,
    value_floor,
    inverse_temperature,
    maximum,
    BY_MASS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the weight of the tokens whose key is at least ``key_floor`` and scaled value at least
    ``value_floor``.
    """
    weight = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        logits = tl.load(row + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)
        counted = (_ordered_key(logits) >= key_floor) & (token < vocab_size)
        if BY_MASS:
            scaled = logits * inverse_temperature
            counted = counted & (scaled >= value_floor)
            weight += tl.where(counted, tl.exp2((scaled - maximum) * _LOG2_E), 0.0)
        else:
            weight += tl.where(counted, 1.0, 0.0)
    return tl.sum(weight, axis=0)


@triton.jit
def _largest_key_with_weight(
    row,
    vocab_size,
    target,
    value_floor,
    inverse_temperature,
    maximum,
    BY_MASS: tl.constexpr,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the largest key at or above which the weight is at least ``target`` (which the whole row
    reaches).
    """
    key = -2147483648
    for step in range(BITS):
        # The sign bit first (setting it in offset form adds 2**31), then each lower bit.
        candidate = (key.to(tl.int64) + (tl.full([], 1, tl.int64) << (31 - step))).to(tl.int32)
        weight = _weight_from(
            row, vocab_size, candidate, value_floor, inverse_temperature, maximum, BY_MASS, TILE
        )
        key = tl.where(weight >= target, candidate, key)
    return key


@triton.jit
def _sample_threshold_kernel(
    logits,
    temperature,
    top_k,
    top_p,
    min_p,
    thresholds,  # [S] float32, on the scaled logits
    vocab_size,
    row_stride,
    BITS: tl.constexpr,
    TILE: tl.constexpr,
):
    index = tl.program_id(0)
    heat = tl.load(temperature + index)
    k = tl.load(top_k + index)
    p = tl.load(top_p + index)
    floor = tl.load(min_p + index)
    limited = ((k > 0) & (k < vocab_size)) | (p < 1.0) | (floor > 0.0)
    if (heat == 0.0) | (limited == 0):
        tl.store(thresholds + index, -float("inf"))
        return
    row = logits + index.to(tl.int64) * row_stride
    inverse = tl.div_rn(1.0, heat)
    highest = tl.full([TILE], -float("inf"), tl.float32)
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        values = tl.load(row + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)
        highest = tl.maximum(highest, values)
    maximum = tl.max(highest, axis=0) * inverse
    threshold = maximum - float("inf")
    if floor > 0.0:
        threshold = maximum + tl.log(floor)
    if (k > 0) & (k < vocab_size):
        kth = _largest_key_with_weight(
            row, vocab_size, k.to(tl.float32), threshold, inverse, maximum, False, BITS, TILE
        )
        threshold = tl.maximum(threshold, _value_of_key(kth) * inverse)
    if p < 1.0:
        # The nucleus is searched over what min-p and top-k left.
        mass = _weight_from(row, vocab_size, -2147483648, threshold, inverse, maximum, True, TILE)
        edge = _largest_key_with_weight(
            row, vocab_size, p * mass, threshold, inverse, maximum, True, BITS, TILE
        )
        threshold = tl.maximum(threshold, _value_of_key(edge) * inverse)
    tl.store(thresholds + index, threshold)


@triton.jit
def _sample_tiles_kernel(
    logits,
    temperature,
    thresholds,
    seed,
    sequence_index,
    position,
    best_scores,  # [S, num_tiles] float32
    best_tokens,  # [S, num_tiles] int32
    vocab_size,
    row_stride,
    GROUPS: tl.constexpr,  # of four tokens, which share a block of the generator
):
    index = tl.program_id(0)
    tile = tl.program_id(1)
    group = tile * GROUPS + tl.arange(0, GROUPS)
    lane = tl.arange(0, 4)[None, :]
    token = group[:, None] * 4 + lane
    row = logits + index.to(tl.int64) * row_stride
    scores = tl.load(row + token, mask=token < vocab_size, other=-float("inf")).to(tl.float32)
    heat = tl.load(temperature + index)
    if heat != 0.0:
        scores *= tl.div_rn(1.0, heat)
        scores = tl.where(scores >= tl.load(thresholds + index), scores, -float("inf"))
        zero = group * 0
        r0, r1, r2, r3 = tl.philox(
            tl.load(seed + index),
            group.to(tl.uint32, bitcast=True),
            (zero + tl.load(position + index)).to(tl.uint32, bitcast=True),
            (zero + tl.load(sequence_index + index)).to(tl.uint32, bitcast=True),
            zero.to(tl.uint32, bitcast=True),
        )
        bits = tl.where(
            lane < 2,
            tl.where(lane == 0, r0[:, None], r1[:, None]),
            tl.where(lane == 2, r2[:, None], r3[:, None]),
        )
        scores -= tl.log(_exponential_from_bits(bits))
    best = tl.max(tl.max(scores, axis=1), axis=0)
    first = tl.min(tl.min(tl.where(scores == best, token, 2147483647), axis=1), axis=0)
    result = index.to(tl.int64) * tl.num_programs(1) + tile
    tl.store(best_scores + result, best)
    tl.store(best_tokens + result, tl.minimum(first, vocab_size - 1))


@triton.jit
def _exponential_from_bits(bits):
    """The draw of `philox.exponential_from_bits`, from uint32."""
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = ((bits ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = v * (1.0 + v * (0.5 + v * (0.3333333333333333 + v * 0.25)))
    return tl.where(v < _SERIES_LIMIT, series, -tl.log(u))


@triton.jit
def _sample_winner_kernel(best_scores, best_tokens, tokens, num_tiles, TILES: tl.constexpr):
    index = tl.program_id(0)
    tile = tl.arange(0, TILES)
    offset = index.to(tl.int64) * num_tiles + tile
    scores = tl.load(best_scores + offset, mask=tile < num_tiles, other=-float("inf"))
    candidates = tl.load(best_tokens + offset, mask=tile < num_tiles, other=2147483647)
    best = tl.max(scores, axis=0)
    token = tl.min(tl.where(scores == best, candidates, 2147483647), axis=0)
    tl.store(tokens + index, token.to(tl.int64))


def sample_gumbel(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Return one token id per row, int64 ``[S]``, without a synchronisation; see `reference.sample`.

    Raises ``ValueError`` when the rows of ``logits [S, V]`` are not contiguous, do not match ``params`` or
    have a dtype other than float32, bfloat16 and float16.
    """
    num_rows, vocab_size = logits.shape
    if num_rows != len(params):
        raise ValueError(f"logits has {num_rows} rows; params has {len(params)}")
    if logits.stride(1) != 1 or logits.dtype not in _SIGNIFICANT_BITS:
        raise ValueError(
            f"logits is {logits.dtype}; it must be float32, bfloat16 or float16 with contiguous rows"
        )
    tokens = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return tokens
    num_tiles = triton.cdiv(vocab_size, _TILE)
    thresholds = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    best_scores = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    best_tokens = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    _sample_threshold_kernel[(num_rows,)](
        logits,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        thresholds,
        vocab_size,
        logits.stride(0),
        BITS=_SIGNIFICANT_BITS[logits.dtype],
        TILE=min(_SEARCH_TILE, triton.next_power_of_2(vocab_size)),
        num_warps=16,
    )
    _sample_tiles_kernel[(num_rows, num_tiles)](
        logits,
        params.temperature,
        thresholds,
        params.seed,
        params.sequence_index,
        params.position,
        best_scores,
        best_tokens,
        vocab_size,
        logits.stride(0),
        GROUPS=_TILE // 4,
        num_warps=8,
    )
    _sample_winner_kernel[(num_rows,)](
        best_scores, best_tokens, tokens, num_tiles, TILES=triton.next_power_of_2(num_tiles), num_warps=1
    )
    return tokens
