"""The first launch of the sampler: every tile of every row is read once.

It keeps the maximum of every chunk of tokens, and of a row with top-p alone each tile's mass. Where noise joins before any
mask, the maximum is of what the noise is not above: the noise itself costs seven times as much and is left to
`masked_row.py`, for the few chunks that can win.
"""

import triton
import triton.language as tl

from quire_kernels.sampling.search import LOG2_E, gumbel_bound_of_groups, load_logits, penalties_of_row


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
    GROUPS: tl.constexpr,  # of four tokens, which share a block of the generator
    CHUNKS: tl.constexpr,
    HAS_DRAWS: tl.constexpr,
    PENALISED: tl.constexpr,
):
    index = tl.program_id(0)
    tile = tl.program_id(1)
    wanted = 1
    if HAS_DRAWS:
        wanted = tl.load(draws + index)
    if wanted == 0:
        return
    heat = tl.load(temperature + index)
    k = tl.load(top_k + index)
    p = tl.load(top_p + index)
    limited = ((k > 0) & (k < vocab_size)) | (p < 1.0) | (tl.load(min_p + index) > 0.0)
    bias, address, repeated, frequent, present = penalties_of_row(
        index, slots, repetition, frequency, presence, addresses, biases, PENALISED
    )
    group = tile * GROUPS + tl.arange(0, GROUPS)
    token = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    row = logits + index.to(tl.int64) * row_stride
    scores = load_logits(row, token, vocab_size, bias, address, repeated, frequent, present, PENALISED)
    if heat != 0.0:
        inverse = tl.div_rn(1.0, heat)
        if limited:
            scores *= inverse
        else:
            bounds = gumbel_bound_of_groups(
                group, tl.load(seed + index), tl.load(position + index), tl.load(sequence_index + index)
            )
            scores = scores * inverse + bounds
    maxima = tl.max(tl.reshape(tl.max(scores, axis=1), [CHUNKS, GROUPS // CHUNKS]), axis=1)
    result = index.to(tl.int64) * tl.num_programs(1) + tile
    tl.store(chunk_maxima + result * CHUNKS + tl.arange(0, CHUNKS), maxima)
    if (heat != 0.0) & (p < 1.0) & ((k == 0) | (k >= vocab_size)):
        peak = tl.max(maxima, axis=0)
        base = tl.where(peak == -float("inf"), 0.0, peak)
        tl.store(masses + result, tl.sum(tl.exp2((scores - base) * LOG2_E)))
