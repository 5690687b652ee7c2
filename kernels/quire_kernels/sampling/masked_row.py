"""The second launch of the sampler: one program per row draws from the few of its chunks that can win.

Without masks these are first the most promising chunk of each tile, then those whose maximum, a bound, is not below the
best score of these: seldom any. Under masks it finds a threshold. The k-th largest chunk maximum is at most the k-th
largest logit, and a mass reached by chunk maxima alone is reached by all logits: so the chunk maxima bound the threshold
from below, and only chunks that reach the bound are read again. What reaches it there is a short list of candidates, on
which the threshold is exact. Where the list would be long (a nucleus of thousands of tokens) the program searches the
whole row instead: right, but some hundred microseconds slower.
"""

import triton
import triton.language as tl

from quire_kernels.overlap import finish_launching, wait_for_inputs
from quire_kernels.sampling.bias_rows import note_drawn
from quire_kernels.sampling.params import NO_TOKEN_LEFT
from quire_kernels.sampling.search import (
    LOG2_E,
    count_occurrence,
    first_token_of_chunks,
    groups_of_chunks,
    gumbel_noise,
    gumbel_noise_of_groups,
    largest_value_with_weight,
    load_logits,
    penalties_of_row,
    row_threshold,
)

_NO_TOKEN_LEFT = tl.constexpr(NO_TOKEN_LEFT)


@triton.jit
def _best_of_chunks(
    row,
    chunk,
    vocab_size,
    heat,
    row_seed,
    row_position,
    row_sequence,
    bias,
    occurrences,
    repetition,
    frequency,
    presence,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    PENALISED: tl.constexpr,
):
    """Return the best score of the chunks, and the lowest token that has it."""
    group = tl.ravel(groups_of_chunks(chunk, CHUNKS, CHUNK, PARTS))
    token = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    scores = load_logits(
        row, token, vocab_size, bias, occurrences, repetition, frequency, presence, PENALISED
    )
    if heat != 0.0:
        scores *= tl.div_rn(1.0, heat)
        scores += gumbel_noise_of_groups(group, row_seed, row_position, row_sequence)
    best = tl.max(tl.max(scores, axis=1), axis=0)
    return best, tl.min(tl.min(tl.where(scores == best, token, 2147483647), axis=1), axis=0)


@triton.jit
def _bound_of_chunks(maxima, is_chunk, mass, k, p, floor, highest, vocab_size):
    """Return a value that the threshold of a row is not below, from its chunk maxima alone.

    ``mass`` is that of the whole row. The candidates of a row with top-k or min-p are then all that those keep, so that
    the mass of what they keep can be added up later; of a row with top-p alone they are fewer.
    """
    bound = floor
    num_chunks = tl.sum(is_chunk.to(tl.int32))
    if (k > 0) & (k < vocab_size):
        if k <= num_chunks:
            kth = largest_value_with_weight(maxima, is_chunk.to(tl.float32), k.to(tl.float32))
            bound = tl.maximum(bound, kth)
    else:
        if (p < 1.0) & (floor == -float("inf")):
            weights = tl.exp2((maxima - highest) * LOG2_E)
            if tl.sum(weights) >= p * mass:
                bound = tl.maximum(bound, largest_value_with_weight(maxima, weights, p * mass))
    # The bound was rounded by another program than the candidates will be.
    return bound - tl.abs(bound) * 1e-6


@triton.jit
def _draw_from_candidates(
    values,
    candidates,
    count,
    k,
    p,
    floor,
    highest,
    mass,  # of the whole row
    vocab_size,
    row_seed,
    row_position,
    row_sequence,
):
    threshold = floor
    is_limited = (floor > -float("inf")) | ((k > 0) & (k < vocab_size))
    if (k > 0) & (k < vocab_size) & (k <= count):
        ones = tl.where(candidates < vocab_size, 1.0, 0.0)
        threshold = tl.maximum(threshold, largest_value_with_weight(values, ones, k.to(tl.float32)))
    if p < 1.0:
        weights = tl.where(values >= threshold, tl.exp2((values - highest) * LOG2_E), 0.0)
        # The nucleus is a share of what the other masks left: of candidates where there is one, else of the row.
        target = p * tl.where(is_limited, tl.sum(weights), mass)
        threshold = tl.maximum(threshold, largest_value_with_weight(values, weights, target))
    noise = gumbel_noise(candidates, row_seed, row_position, row_sequence)
    scores = tl.where((values >= threshold) & (candidates < vocab_size), values + noise, -float("inf"))
    best = tl.max(scores, axis=0)
    return tl.min(tl.where(scores == best, candidates, 2147483647), axis=0)


@triton.jit
def _draw_from_row(
    row,
    vocab_size,
    threshold,
    inverse_temperature,
    row_seed,
    row_position,
    row_sequence,
    bias,
    occurrences,
    repetition,
    frequency,
    presence,
    GROUPS: tl.constexpr,
    PENALISED: tl.constexpr,
):
    best = tl.full([], -float("inf"), tl.float32)
    winner = tl.full([], 2147483647, tl.int32)
    for start in range(0, tl.cdiv(vocab_size, 4), GROUPS):
        group = start + tl.arange(0, GROUPS)
        token = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        values = load_logits(
            row, token, vocab_size, bias, occurrences, repetition, frequency, presence, PENALISED
        )
        values *= inverse_temperature
        noise = gumbel_noise_of_groups(group, row_seed, row_position, row_sequence)
        scores = tl.where((values >= threshold) & (token < vocab_size), values + noise, -float("inf"))
        highest = tl.max(tl.max(scores, axis=1), axis=0)
        first = tl.min(tl.min(tl.where(scores == highest, token, 2147483647), axis=1), axis=0)
        winner = tl.where(highest > best, first, winner)
        best = tl.maximum(best, highest)
    return winner


@triton.jit
def sample_rows_kernel(
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
    masses,
    chunk_maxima,
    chunk_lists,  # [R, num_tiles * CHUNKS] int32
    candidate_values,  # [R, MAX_CANDIDATES] float32
    candidate_tokens,  # [R, MAX_CANDIDATES] int32
    tokens,
    vocab_size,
    row_stride,
    num_tiles,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
    SETS: tl.constexpr,
    CHUNK: tl.constexpr,
    PARTS: tl.constexpr,
    GATHERED: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    BITS: tl.constexpr,
    SEARCH_TILE: tl.constexpr,
    HAS_DRAWS: tl.constexpr,
    PENALISED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    finish_launching(OVERLAP)
    wait_for_inputs(OVERLAP)
    index = tl.program_id(0)
    # What a program waits for it asks for at once (`volatile` keeps it here).
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
        tl.store(tokens + index, tl.full([], 0, tl.int64))
        return
    limited = ((k > 0) & (k < vocab_size)) | (p < 1.0) | (share > 0.0)
    free = (heat == 0.0) | (limited == 0)
    row = logits + index.to(tl.int64) * row_stride
    offset = index.to(tl.int64) * num_tiles
    chunk = tl.reshape(tl.arange(0, TILES * CHUNKS), [SETS, TILES * CHUNKS // SETS])
    is_chunk = first_token_of_chunks(chunk, CHUNKS, CHUNK, PARTS) < vocab_size
    maxima = tl.load(chunk_maxima + offset * CHUNKS + chunk, mask=is_chunk, other=-float("inf"))
    highest = tl.max(tl.max(maxima, axis=1), axis=0)
    has_none_left = highest == -float("inf")
    highest = tl.where(has_none_left, 0.0, highest)
    floor = tl.full([], -float("inf"), tl.float32)
    mass = tl.full([], 0.0, tl.float32)
    best = tl.full([], -float("inf"), tl.float32)
    token = tl.full([], -1, tl.int32)
    if free:
        # The most promising chunk of every set first: seldom has another one the winner.
        first = tl.arange(0, SETS) * (TILES * CHUNKS // SETS) + tl.argmax(maxima, axis=1)
        best, token = _best_of_chunks(
            row, first, vocab_size, heat, row_seed, row_position, row_sequence,
            bias, address, repeated, frequent, present, CHUNKS, CHUNK, PARTS, PENALISED,
        )  # fmt: skip
        # Maxima with noise were rounded by another program than the scores are; those without are exact.
        bound = best - tl.where(heat == 0.0, 0.0, tl.minimum((tl.abs(best) + 32.0) * 1e-6, 1e30))
        maxima = tl.where(chunk == first[:, None], -float("inf"), maxima)
    else:
        if share > 0.0:
            floor = highest + tl.log(share)
        tile = tl.arange(0, TILES)
        peaks = tl.max(tl.reshape(maxima, [TILES, CHUNKS]), axis=1)
        # A tile of which nothing can be drawn has left no mass.
        has_mass = (tile < num_tiles) & (peaks > -float("inf"))
        of_tile = tl.load(masses + offset + tile, mask=has_mass, other=0.0)
        mass = tl.sum(of_tile * tl.exp2((peaks - highest) * LOG2_E))
        bound = _bound_of_chunks(maxima, is_chunk, mass, k, p, floor, highest, vocab_size)
    selected = is_chunk & (maxima >= bound) & (maxima > -float("inf"))
    num_selected = tl.sum(selected.to(tl.int32))
    chosen = chunk_lists + offset * CHUNKS
    if num_selected > 0:
        flags = tl.reshape(selected.to(tl.int32), [TILES * CHUNKS])
        place = tl.reshape(tl.cumsum(flags, axis=0) - flags, [SETS, TILES * CHUNKS // SETS])
        tl.store(chosen + place, chunk, mask=selected)
        tl.debug_barrier()
    if free:
        for start in range(0, num_selected, GATHERED):
            again = tl.load(chosen + tl.minimum(start + tl.arange(0, GATHERED), num_selected - 1))
            highest_again, lowest = _best_of_chunks(
                row, again, vocab_size, heat, row_seed, row_position, row_sequence,
                bias, address, repeated, frequent, present, CHUNKS, CHUNK, PARTS, PENALISED,
            )  # fmt: skip
            lowest = tl.where(highest_again == best, tl.minimum(lowest, token), lowest)
            token = tl.where(highest_again >= best, lowest, token)
            best = tl.maximum(best, highest_again)
    else:
        inverse = tl.div_rn(1.0, heat)
        if num_selected <= MAX_CHUNKS:
            listed = index.to(tl.int64) * MAX_CANDIDATES
            count = tl.full([], 0, tl.int32)
            for start in range(0, num_selected, GATHERED):
                at = start + tl.arange(0, GATHERED)
                again = tl.load(chosen + at, mask=at < num_selected, other=0)
                group = groups_of_chunks(again, CHUNKS, CHUNK, PARTS)
                candidate = tl.reshape(
                    group[:, :, None] * 4 + tl.arange(0, 4)[None, None, :], [GATHERED, CHUNK]
                )
                candidate = tl.where((at < num_selected)[:, None], candidate, -1)
                values = load_logits(
                    row, candidate, vocab_size, bias, address, repeated, frequent, present, PENALISED
                )
                values *= inverse
                keeps = (values >= bound) & (values > -float("inf"))
                kept = tl.reshape(keeps.to(tl.int32), [GATHERED * CHUNK])
                where = tl.reshape(count + tl.cumsum(kept, axis=0) - kept, [GATHERED, CHUNK])
                fits = keeps & (where < MAX_CANDIDATES)
                tl.store(candidate_values + listed + where, values, mask=fits)
                tl.store(candidate_tokens + listed + where, candidate, mask=fits)
                count += tl.sum(kept, axis=0)
            tl.debug_barrier()
            if count <= MAX_CANDIDATES:
                entry = tl.arange(0, MAX_CANDIDATES)
                found = tl.load(candidate_values + listed + entry, mask=entry < count, other=-float("inf"))
                ids = tl.load(candidate_tokens + listed + entry, mask=entry < count, other=2147483647)
                token = _draw_from_candidates(
                    found,
                    ids,
                    count,
                    k,
                    p,
                    floor,
                    highest,
                    mass,
                    vocab_size,
                    row_seed,
                    row_position,
                    row_sequence,
                )
        if token < 0:
            bits = BITS
            if PENALISED:
                bits = tl.where((address != 0) | (bias != 0), 32, BITS)
            threshold = row_threshold(
                row, vocab_size, k, p, floor, bits, inverse, highest,
                bias, address, repeated, frequent, present, PENALISED, SEARCH_TILE,
            )  # fmt: skip
            token = _draw_from_row(
                row, vocab_size, threshold, inverse, row_seed, row_position, row_sequence,
                bias, address, repeated, frequent, present, SEARCH_TILE // 4, PENALISED,
            )  # fmt: skip
    token = tl.where(has_none_left, _NO_TOKEN_LEFT, token)
    token = tl.minimum(token, vocab_size - 1)
    tl.store(tokens + index, token.to(tl.int64))
    if PENALISED:
        word_list = tl.load(words + tl.load(slots + index))
        if token >= 0:
            count_occurrence(address, token)
            note_drawn(word_list, bias, token)
