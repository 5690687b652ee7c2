"""Triton building blocks of the sampler: reading logits with penalties, noise, and thresholds without sorting.

A threshold of top-k, or of top-p, is the largest value at or above which lies enough weight (a count, or a mass). It
is built bit by bit from the top over integers ordered as the floats are (a radix search).
"""

import triton
import triton.language as tl
from triton.language.target_info import cuda_capability_geq

LOG2_E = tl.constexpr(1.4426950408889634)
_SERIES_LIMIT = tl.constexpr(2.0**-8)
_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_KEY_STEP_0 = tl.constexpr(0x9E3779B9)
_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
_KEY_STEP_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def penalties_of_row(
    index, slots, repetition, frequency, presence, addresses, biases, PENALISED: tl.constexpr
):  # fmt: skip
    if PENALISED:
        slot = tl.load(slots + index)
        return (
            tl.load(biases + slot),
            tl.load(addresses + slot),
            tl.load(repetition + slot),
            tl.load(frequency + slot),
            tl.load(presence + slot),
        )
    none = tl.full([], 0, tl.int64)
    off = tl.full([], 0.0, tl.float32)
    return none, none, off + 1.0, off, off


@triton.jit
def load_logits(
    row,
    token,
    vocab_size,
    bias,  # address of what is added, or 0
    occurrences,  # address of the slot's occurrences, or 0
    repetition,
    frequency,
    presence,
    PENALISED: tl.constexpr,
):
    """Return the float32 logits of ``token``, biased and penalised; minus infinity past the vocabulary."""
    inside = (token >= 0) & (token < vocab_size)
    values = tl.load(row + token, mask=inside, other=-float("inf")).to(tl.float32)
    if PENALISED:
        if bias != 0:
            added = bias.to(tl.pointer_type(tl.float32))
            values += tl.load(added + token, mask=inside, other=0.0)
        values = _penalised(values, token, inside, occurrences, repetition, frequency, presence)
    return values


@triton.jit
def _penalised(values, token, inside, occurrences, repetition, frequency, presence):
    if occurrences != 0:
        table = tl.multiple_of(occurrences.to(tl.pointer_type(tl.int16)), 16)
        occurrence = tl.load(table + token, mask=inside, other=0).to(tl.int32)
        count = (occurrence & 0x7FFF).to(tl.float32)
        repeated = values * tl.where(values > 0.0, tl.div_rn(1.0, repetition), repetition)
        values = tl.where(occurrence != 0, repeated, values)
        values -= frequency * count
        values -= tl.where(count > 0.0, presence, 0.0)
    return values


@triton.jit
def groups_of_chunks(chunk, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr):
    """Return the groups of four tokens ``[N, CHUNK // 4]`` of chunks ``[N]``.

    A tile has ``PARTS`` equal parts, and each of its ``CHUNKS`` chunks an equal share of each: so most of a chunk's maximum is
    found within threads.
    """
    SHARE: tl.constexpr = CHUNK // 4 // PARTS
    number = tl.arange(0, CHUNK // 4)
    place = number // SHARE * (SHARE * CHUNKS) + number % SHARE
    return first_token_of_chunks(chunk, CHUNKS, CHUNK, PARTS)[:, None] // 4 + place[None, :]


@triton.jit
def first_token_of_chunks(chunk, CHUNKS: tl.constexpr, CHUNK: tl.constexpr, PARTS: tl.constexpr):
    """Return the lowest token of each chunk."""
    return chunk // CHUNKS * (CHUNKS * CHUNK) + chunk % CHUNKS * (CHUNK // PARTS)


@triton.jit
def maxima_of_chunks(peaks, CHUNKS: tl.constexpr, PARTS: tl.constexpr):
    """Return the maxima ``[CHUNKS]`` of a tile's chunks from those of its groups; see `groups_of_chunks`."""
    parts = tl.max(tl.reshape(peaks, [PARTS, peaks.shape[0] // PARTS]), axis=0)
    return tl.max(tl.reshape(parts, [CHUNKS, parts.shape[0] // CHUNKS]), axis=1)


@triton.jit
def highest_of_fours(values):
    """Return the maxima ``[N]`` of ``values [N, 4]`` in float32; of 16-bit ones two are compared at a time."""
    if _INTERPRETED or values.dtype.primitive_bitwidth != 16 or not cuda_capability_geq(8, 0):
        return tl.max(values.to(tl.float32), axis=1)
    pairs = tl.reshape(values, [values.shape[0], 2, 2])
    left, right = tl.split(tl.permute(pairs, (0, 2, 1)))
    highest = tl.inline_asm_elementwise(
        "max.bf16x2 $0, $1, $2;" if values.dtype == tl.bfloat16 else "max.f16x2 $0, $1, $2;",
        "=r,r,r",
        [left, right],
        dtype=values.dtype,
        is_pure=True,
        pack=2,
    )
    even, odd = tl.split(highest)
    return tl.maximum(even.to(tl.float32), odd.to(tl.float32))


@triton.jit
def count_occurrence(occurrences, token):
    """Add the drawn ``token`` to the counts at an address, if there is one; a count that is full stays as it is."""
    if occurrences != 0:
        place = occurrences.to(tl.pointer_type(tl.int16)) + token
        before = tl.load(place).to(tl.int32)
        after = tl.where((before & 0x7FFF) == 0x7FFF, before, before + 1)
        tl.store(place, after.to(tl.int16))


@triton.jit
def gumbel_noise(token, seed, position, sequence_index):
    """Return the noise of each token, drawn one by one; see `philox.py`."""
    r0, r1, r2, r3 = _random_words(token // 4, seed, position, sequence_index)
    return noise_of_bits(_word_of_lane(token % 4, r0, r1, r2, r3))


@triton.jit
def gumbel_noise_of_groups(group, seed, position, sequence_index):
    """Return the noise ``[GROUPS, 4]`` of groups of four tokens, which share a block of the generator."""
    r0, r1, r2, r3 = _random_words(group, seed, position, sequence_index)
    lane = tl.arange(0, 4)[None, :]
    return noise_of_bits(_word_of_lane(lane, r0[:, None], r1[:, None], r2[:, None], r3[:, None]))


@triton.jit
def loudest_bits_of_groups(group, seed, position, sequence_index):
    """Return the bits ``[GROUPS]`` of the loudest noise of each group of four tokens: the noise grows with its bits."""
    r0, r1, r2, r3 = _random_words(group, seed, position, sequence_index)
    return tl.maximum(tl.maximum(r0, r1), tl.maximum(r2, r3))


@triton.jit
def noise_of_bits(bits):
    """The draw of `philox.gumbel_from_bits`, from uint32."""
    return -tl.log(_exponential_from_bits(bits))


@triton.jit
def noise_bound_of_bits(bits):
    """Return what `noise_of_bits` is not above, and at most 3.2 below, for a tenth of its cost.

    The noise is ``-log(-log(1 - v))``, and ``-log(1 - v)`` is at least ``v`` and less than 23. The bits of a float, taken
    for an integer, are its binary logarithm interpolated between powers of two, which is low by at most 0.0861.
    """
    v = (bits ^ 0xFFFFFFFF).to(tl.float32) + 0.5  # times 2 ** 32
    return v.to(tl.int32, bitcast=True).to(tl.float32) * -8.262958294867817e-08 + 110.21040170903068


@triton.jit
def _word_of_lane(lane, r0, r1, r2, r3):
    return tl.where(lane < 2, tl.where(lane == 0, r0, r1), tl.where(lane == 2, r2, r3))


@triton.jit
def _random_words(group, seed, position, sequence_index):
    """Return the block ``(group, position, sequence_index, 0)`` of the generator; see `philox.py`."""
    zero = group * 0
    c0 = group.to(tl.uint32, bitcast=True)
    c1 = (zero + position).to(tl.uint32, bitcast=True)
    c2 = (zero + sequence_index).to(tl.uint32, bitcast=True)
    c3 = zero.to(tl.uint32, bitcast=True)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        product0 = _wide_product(c0, _MULTIPLIER_0)
        product1 = _wide_product(c2, _MULTIPLIER_1)
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = product1.to(tl.uint32)
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = product0.to(tl.uint32)
        k0 = tl.add(k0, _KEY_STEP_0, sanitize_overflow=False)
        k1 = tl.add(k1, _KEY_STEP_1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _wide_product(word, FACTOR: tl.constexpr):
    """All 64 bits of a product, in one instruction where the compiler would make one for each half."""
    if _INTERPRETED:
        return word.to(tl.uint64) * FACTOR
    return tl.inline_asm_elementwise(
        "mul.wide.u32 $0, $1, $2;", "=l,r,n", [word, FACTOR], dtype=tl.uint64, is_pure=True, pack=1
    )


@triton.jit
def _exponential_from_bits(bits):
    """The draw of `philox.exponential_from_bits`, from uint32."""
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    v = ((bits ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    series = v * (1.0 + v * (0.5 + v * (0.3333333333333333 + v * 0.25)))
    return tl.where(v < _SERIES_LIMIT, series, -tl.log(u))


@triton.jit
def _ordered_key(values):
    """Map float32 to int32 so that the order is kept; minus zero counts as zero."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _value_of_key(key):
    return tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True)


@triton.jit
def _next_candidate(key, step):
    # The sign bit first (setting it in offset form adds 2**31), then each lower bit.
    return (key.to(tl.int64) + (tl.full([], 1, tl.int64) << (31 - step))).to(tl.int32)


@triton.jit
def largest_value_with_weight(values, weights, target):
    """Return the largest of ``values`` at or above which the weight is at least ``target``, which all reach."""
    keys = _ordered_key(values)
    key = tl.full([], -2147483648, tl.int32)
    for step in range(32):
        candidate = _next_candidate(key, step)
        weight = tl.sum(tl.where(keys >= candidate, weights, 0.0))
        key = tl.where(weight >= target, candidate, key)
    return _value_of_key(key)


@triton.jit
def _row_weight(
    row,
    vocab_size,
    key_floor,
    value_floor,
    inverse_temperature,
    maximum,
    bias,
    occurrences,
    repetition,
    frequency,
    presence,
    PENALISED: tl.constexpr,
    BY_MASS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the weight of the tokens whose key is at least ``key_floor`` and scaled value at least ``value_floor``."""
    weight = tl.zeros([TILE], tl.float32)
    for start in range(0, vocab_size, TILE):
        token = start + tl.arange(0, TILE)
        logits = load_logits(
            row, token, vocab_size, bias, occurrences, repetition, frequency, presence, PENALISED
        )
        counted = (_ordered_key(logits) >= key_floor) & (token < vocab_size)
        if BY_MASS:
            scaled = logits * inverse_temperature
            counted = counted & (scaled >= value_floor)
            weight += tl.where(counted, tl.exp2((scaled - maximum) * LOG2_E), 0.0)
        else:
            weight += tl.where(counted, 1.0, 0.0)
    return tl.sum(weight, axis=0)


@triton.jit
def _row_value_with_weight(
    row,
    vocab_size,
    target,
    bits,
    value_floor,
    inverse_temperature,
    maximum,
    bias,
    occurrences,
    repetition,
    frequency,
    presence,
    PENALISED: tl.constexpr,
    BY_MASS: tl.constexpr,
    TILE: tl.constexpr,
):
    key = tl.full([], -2147483648, tl.int32)
    for step in range(bits):
        candidate = _next_candidate(key, step)
        weight = _row_weight(
            row, vocab_size, candidate, value_floor, inverse_temperature, maximum,
            bias, occurrences, repetition, frequency, presence, PENALISED, BY_MASS, TILE,
        )  # fmt: skip
        key = tl.where(weight >= target, candidate, key)
    return _value_of_key(key) * inverse_temperature


@triton.jit
def row_threshold(
    row,
    vocab_size,
    k,
    p,
    floor,  # what min-p keeps, on the scaled logits
    bits,
    inverse_temperature,
    maximum,  # of the scaled logits
    bias,
    occurrences,
    repetition,
    frequency,
    presence,
    PENALISED: tl.constexpr,
    TILE: tl.constexpr,
):
    """Return the smallest scaled logit that a row's masks keep, reading the whole row once per bit."""
    threshold = floor
    if (k > 0) & (k < vocab_size):
        kth = _row_value_with_weight(
            row, vocab_size, k.to(tl.float32), bits, threshold, inverse_temperature, maximum,
            bias, occurrences, repetition, frequency, presence, PENALISED, False, TILE,
        )  # fmt: skip
        threshold = tl.maximum(threshold, kth)
    if p < 1.0:
        # The nucleus is searched over what min-p and top-k left.
        mass = _row_weight(
            row, vocab_size, -2147483648, threshold, inverse_temperature, maximum,
            bias, occurrences, repetition, frequency, presence, PENALISED, True, TILE,
        )  # fmt: skip
        edge = _row_value_with_weight(
            row, vocab_size, p * mass, bits, threshold, inverse_temperature, maximum,
            bias, occurrences, repetition, frequency, presence, PENALISED, True, TILE,
        )  # fmt: skip
        threshold = tl.maximum(threshold, edge)
    return threshold
