"""The first launch of the sampler: every tile of every row is read once.

It keeps the maximum of every chunk of tokens, and of a row with top-p alone each tile's mass. Where noise joins before any
mask, it keeps what no score of the chunk is above: the highest logit of four tokens and the bound of their loudest noise, which
need not be of the same token. The noise itself costs many times as much and is left to `masked_row.py`, for the few chunks
that can win.
"""

import triton
import triton.language as tl

from quire_kernels.overlap import finish_launching, wait_for_inputs
from quire_kernels.sampling.search import (
    LOG2_E,
    highest_of_fours,
    load_logits,
    loudest_bits_of_groups,
    maxima_of_chunks,
    noise_bound_of_bits,
    penalties_of_row,
)


@triton.jit
def sample_tiles_kernel(
    logits,
    draws,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    sequence_index,
    position,
    slots,
    repetition,
    frequency,
    presence,
    addresses,
    biases,
    words,
    masses,  # [R, num_tiles] float32: of a tile over its maximum, for rows with top-p alone
    chunk_maxima,  # [R, num_tiles, CHUNKS] float32
    vocab_size,
    row_stride,
    num_tiles,
    GROUPS: tl.constexpr,  # of four tokens, which share a block of the generator
    TILES: tl.constexpr,  # of a program, which asks for the next one before it looks at one
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_DRAWS: tl.constexpr,
    PENALISED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    index = tl.program_id(0)
    # What a program waits for it asks for at once (`volatile` keeps it here): it lives for a few such waits.
    heat = tl.load(temperature + index, volatile=True)
    k = tl.load(top_k + index, volatile=True)
    p = tl.load(top_p + index, volatile=True)
    share = tl.load(min_p + index, volatile=True)
    row_seed = tl.load(seed + index, volatile=True)
    row_position = tl.load(position + index, volatile=True)
    row_sequence = tl.load(sequence_index + index, volatile=True)
    bias, address, repeated, frequent, present = penalties_of_row(
        index, slots, repetition, frequency, presence, addresses, biases, PENALISED
    )
    wanted = 1
    if HAS_DRAWS:
        wanted = tl.load(draws + index)
    if wanted == 0:
        return
    row = logits + index.to(tl.int64) * row_stride
    first = tl.program_id(1) * TILES
    last = tl.minimum(first + TILES, num_tiles)
    has_limit = (k > 0) & (k < vocab_size)
    noisy = (heat != 0.0) & (has_limit == 0) & (p >= 1.0) & (share <= 0.0)
    weighs = (heat != 0.0) & (has_limit == 0) & (p < 1.0)
    inverse = tl.full([], 1.0, tl.float32)
    if heat != 0.0:
        inverse = tl.div_rn(1.0, heat)
    targets = chunk_maxima + index.to(tl.int64) * num_tiles * CHUNKS + tl.arange(0, CHUNKS)
    if (bias == 0) & (address == 0) & (weighs == 0):
        read = _read_tile(row, first, vocab_size, GROUPS)
        for tile in range(first, last):
            following = read
            if TILES > 1:
                # After the last one comes a tile that lies past the vocabulary: nothing is read.
                after = tl.where(tile + 1 < last, tile + 1, num_tiles)
                following = _read_tile(row, after, vocab_size, GROUPS)
            peaks = highest_of_fours(read) * inverse
            if noisy:
                peaks += _noise_bounds(tile, row_seed, row_position, row_sequence, GROUPS)
            tl.store(targets + tile * CHUNKS, maxima_of_chunks(peaks, CHUNKS, PARTS))
            read = following
        return
    for tile in range(first, last):
        token = (tile * GROUPS + tl.arange(0, GROUPS))[:, None] * 4 + tl.arange(0, 4)[None, :]
        scores = inverse * load_logits(
            row, token, vocab_size, bias, address, repeated, frequent, present, PENALISED
        )
        peaks = tl.max(scores, axis=1)
        if noisy:
            peaks += _noise_bounds(tile, row_seed, row_position, row_sequence, GROUPS)
        maxima = maxima_of_chunks(peaks, CHUNKS, PARTS)
        tl.store(targets + tile * CHUNKS, maxima)
        if weighs:
            peak = tl.max(maxima, axis=0)
            base = tl.where(peak == -float("inf"), 0.0, peak)
            mass = tl.sum(tl.exp2((scores - base) * LOG2_E))
            tl.store(masses + index.to(tl.int64) * num_tiles + tile, mass)


@triton.jit
def _read_tile(row, tile, vocab_size, GROUPS: tl.constexpr):
    token = (tile * GROUPS + tl.arange(0, GROUPS))[:, None] * 4 + tl.arange(0, 4)[None, :]
    return tl.load(row + token, mask=token < vocab_size, other=-float("inf"))


@triton.jit
def _noise_bounds(tile, seed, position, sequence_index, GROUPS: tl.constexpr):
    group = tile * GROUPS + tl.arange(0, GROUPS)
    return noise_bound_of_bits(loudest_bits_of_groups(group, seed, position, sequence_index))
