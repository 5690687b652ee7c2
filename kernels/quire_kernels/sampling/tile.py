"""The first launch of the sampler: every tile of every row is read once.

Rows that are greedy or have no mask are decided here: each tile finds its best token, noise included. Of rows with masks
it keeps the maximum of every chunk of tokens and, for top-p alone, the tile's mass.
"""

import triton
import triton.language as tl

from quire_kernels.sampling.search import LOG2_E, gumbel_noise_of_groups, load_logits, penalties_of_row


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
    best_scores,  # [R, num_tiles] float32; of rows with masks the mass of the tile over its maximum
    best_tokens,  # [R, num_tiles] int32
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
    result = index.to(tl.int64) * tl.num_programs(1) + tile
    if heat != 0.0:
        scores *= tl.div_rn(1.0, heat)
    if (heat != 0.0) & limited:
        maxima = tl.max(tl.reshape(tl.max(scores, axis=1), [CHUNKS, GROUPS // CHUNKS]), axis=1)
        tl.store(chunk_maxima + result * CHUNKS + tl.arange(0, CHUNKS), maxima)
        if (p < 1.0) & ((k == 0) | (k >= vocab_size)):
            peak = tl.max(maxima, axis=0)
            base = tl.where(peak == -float("inf"), 0.0, peak)
            tl.store(best_scores + result, tl.sum(tl.exp2((scores - base) * LOG2_E)))
    else:
        if heat != 0.0:
            scores += gumbel_noise_of_groups(
                group, tl.load(seed + index), tl.load(position + index), tl.load(sequence_index + index)
            )
        best = tl.max(tl.max(scores, axis=1), axis=0)
        first = tl.min(tl.min(tl.where(scores == best, token, 2147483647), axis=1), axis=0)
        tl.store(best_scores + result, best)
        tl.store(best_tokens + result, tl.minimum(first, vocab_size - 1))
