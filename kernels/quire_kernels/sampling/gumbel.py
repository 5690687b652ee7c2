"""Triton sampler: one pass over the logits, then a search among the few that can win. Truth: `sampling/reference.py`.

Two launches of fixed size, neither of which waits for the host or depends on a value:

`tiles` reads every tile of every row once. Rows that are greedy or have no mask are decided there: each tile finds its
best token, noise included. Of rows with masks it keeps the maximum of every chunk of 128 tokens.

`rows` takes one row per program. The k-th largest chunk maximum is at most the k-th largest logit, and a mass reached
by chunk maxima alone is reached by all logits: so the chunk maxima bound the threshold from below, and only chunks
that reach the bound are read again. What reaches it there is a short list of candidates, on which the threshold is
exact. Where the list would be long (a nucleus of thousands of tokens) the program searches the whole row instead:
right, but some hundred microseconds slower.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.sampling.params import Penalties, SamplingTensors
from quire_kernels.sampling.search import (
    LOG2_E,
    count_occurrence,
    gumbel_noise,
    gumbel_noise_of_groups,
    largest_value_with_weight,
    load_logits,
    row_threshold,
)

_TILE = 4096  # tokens per program of `tiles`
_CHUNK = 128  # tokens that share a maximum
_GATHERED = 16  # chunks read again at a time
_MAX_CHUNKS = 512  # read again per row
_MAX_CANDIDATES = 2048
_SEARCH_TILE = 2048  # tokens per step of a search over a whole row
# Bits of a float32 that can differ between values of a narrower type: the search looks at no others.
_SIGNIFICANT_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 19}


@triton.jit
def _penalties_of_row(index, slots, repetition, frequency, presence, addresses, PENALISED: tl.constexpr):
    if PENALISED:
        slot = tl.load(slots + index)
        return (
            tl.load(addresses + slot),
            tl.load(repetition + slot),
            tl.load(frequency + slot),
            tl.load(presence + slot),
        )
    none = tl.full([], 0, tl.int64)
    off = tl.full([], 0.0, tl.float32)
    return none, off + 1.0, off, off


@triton.jit
def _sample_tiles_kernel(
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
    address, repeated, frequent, present = _penalties_of_row(
        index, slots, repetition, frequency, presence, addresses, PENALISED
    )
    group = tile * GROUPS + tl.arange(0, GROUPS)
    token = group[:, None] * 4 + tl.arange(0, 4)[None, :]
    row = logits + index.to(tl.int64) * row_stride
    scores = load_logits(row, token, vocab_size, address, repeated, frequent, present, PENALISED)
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


@triton.jit
def _best_of_tiles(best_scores, best_tokens, index, num_tiles, TILES: tl.constexpr):
    tile = tl.arange(0, TILES)
    offset = index.to(tl.int64) * num_tiles + tile
    scores = tl.load(best_scores + offset, mask=tile < num_tiles, other=-float("inf"))
    candidates = tl.load(best_tokens + offset, mask=tile < num_tiles, other=2147483647)
    return tl.min(tl.where(scores == tl.max(scores, axis=0), candidates, 2147483647), axis=0)


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
        values = load_logits(row, token, vocab_size, occurrences, repetition, frequency, presence, PENALISED)
        values *= inverse_temperature
        noise = gumbel_noise_of_groups(group, row_seed, row_position, row_sequence)
        scores = tl.where((values >= threshold) & (token < vocab_size), values + noise, -float("inf"))
        highest = tl.max(tl.max(scores, axis=1), axis=0)
        first = tl.min(tl.min(tl.where(scores == highest, token, 2147483647), axis=1), axis=0)
        winner = tl.where(highest > best, first, winner)
        best = tl.maximum(best, highest)
    return winner


@triton.jit
def _sample_rows_kernel(
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
    best_scores,
    best_tokens,
    chunk_maxima,
    chunk_lists,  # [R, MAX_CHUNKS] int32
    candidate_values,  # [R, MAX_CANDIDATES] float32
    candidate_tokens,  # [R, MAX_CANDIDATES] int32
    tokens,
    vocab_size,
    row_stride,
    num_tiles,
    TILES: tl.constexpr,
    CHUNKS: tl.constexpr,
    CHUNK: tl.constexpr,
    GATHERED: tl.constexpr,
    MAX_CHUNKS: tl.constexpr,
    MAX_CANDIDATES: tl.constexpr,
    BITS: tl.constexpr,
    SEARCH_TILE: tl.constexpr,
    HAS_DRAWS: tl.constexpr,
    PENALISED: tl.constexpr,
):
    index = tl.program_id(0)
    wanted = 1
    if HAS_DRAWS:
        wanted = tl.load(draws + index)
    if wanted == 0:
        tl.store(tokens + index, tl.full([], 0, tl.int64))
        return
    heat = tl.load(temperature + index)
    k = tl.load(top_k + index)
    p = tl.load(top_p + index)
    share = tl.load(min_p + index)
    limited = ((k > 0) & (k < vocab_size)) | (p < 1.0) | (share > 0.0)
    address, repeated, frequent, present = _penalties_of_row(
        index, slots, repetition, frequency, presence, addresses, PENALISED
    )
    token = tl.full([], -1, tl.int32)
    if (heat == 0.0) | (limited == 0):
        token = _best_of_tiles(best_scores, best_tokens, index, num_tiles, TILES)
    else:
        row = logits + index.to(tl.int64) * row_stride
        inverse = tl.div_rn(1.0, heat)
        row_seed = tl.load(seed + index)
        row_position = tl.load(position + index)
        row_sequence = tl.load(sequence_index + index)
        tile = tl.arange(0, TILES)
        chunk = tile[:, None] * CHUNKS + tl.arange(0, CHUNKS)[None, :]
        is_chunk = chunk * CHUNK < vocab_size
        offset = index.to(tl.int64) * num_tiles
        maxima = tl.load(chunk_maxima + offset * CHUNKS + chunk, mask=is_chunk, other=-float("inf"))
        highest = tl.max(tl.max(maxima, axis=1), axis=0)
        floor = highest * 0.0 - float("inf")
        if share > 0.0:
            floor = highest + tl.log(share)
        masses = tl.load(best_scores + offset + tile, mask=tile < num_tiles, other=0.0)
        peaks = tl.max(maxima, axis=1)
        mass = tl.sum(tl.where(peaks > -float("inf"), masses * tl.exp2((peaks - highest) * LOG2_E), 0.0))
        bound = _bound_of_chunks(maxima, is_chunk, mass, k, p, floor, highest, vocab_size)
        selected = is_chunk & (maxima >= bound) & (maxima > -float("inf"))
        num_selected = tl.sum(selected.to(tl.int32))
        if num_selected <= MAX_CHUNKS:
            flags = tl.reshape(selected.to(tl.int32), [TILES * CHUNKS])
            chosen = chunk_lists + index.to(tl.int64) * MAX_CHUNKS
            place = tl.reshape(tl.cumsum(flags, axis=0) - flags, [TILES, CHUNKS])
            tl.store(chosen + place, chunk, mask=selected)
            tl.debug_barrier()
            listed = index.to(tl.int64) * MAX_CANDIDATES
            count = tl.full([], 0, tl.int32)
            for start in range(0, num_selected, GATHERED):
                at = start + tl.arange(0, GATHERED)
                again = tl.load(chosen + at, mask=at < num_selected, other=0)
                candidate = again[:, None] * CHUNK + tl.arange(0, CHUNK)[None, :]
                candidate = tl.where((at < num_selected)[:, None], candidate, -1)
                values = load_logits(
                    row, candidate, vocab_size, address, repeated, frequent, present, PENALISED
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
                bits = tl.where(address != 0, 32, BITS)
            threshold = row_threshold(
                row, vocab_size, k, p, floor, bits, inverse, highest,
                address, repeated, frequent, present, PENALISED, SEARCH_TILE,
            )  # fmt: skip
            token = _draw_from_row(
                row, vocab_size, threshold, inverse, row_seed, row_position, row_sequence,
                address, repeated, frequent, present, SEARCH_TILE // 4, PENALISED,
            )  # fmt: skip
    token = tl.minimum(token, vocab_size - 1)
    tl.store(tokens + index, token.to(tl.int64))
    if PENALISED:
        count_occurrence(address, token)


def sample_gumbel(
    logits: Tensor, params: SamplingTensors, draws: Tensor | None = None, penalties: Penalties | None = None
) -> Tensor:
    """Return one token id per row, int64 ``[R]``, without a synchronisation; see `dispatch.sample`.

    Raises ``ValueError`` when the rows of ``logits [R, V]`` are not contiguous, do not match ``params`` or
    have a dtype other than float32, bfloat16 and float16.
    """
    num_rows, vocab_size = logits.shape
    if num_rows != len(params):
        raise ValueError(f"logits has {num_rows} rows; params has {len(params)}")
    if logits.stride(1) != 1 or logits.dtype not in _SIGNIFICANT_BITS:
        raise ValueError(
            f"logits is {logits.dtype}; it must be float32, bfloat16 or float16 with contiguous rows"
        )
    device = logits.device
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return tokens
    num_tiles = triton.cdiv(vocab_size, _TILE)
    chunks = _TILE // _CHUNK

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=device)

    best_scores, best_tokens = scratch(num_tiles), scratch(num_tiles, dtype=torch.int32)
    chunk_maxima = scratch(num_tiles, chunks)
    columns = (
        logits,
        tokens if draws is None else draws,
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.seed,
        params.sequence_index,
        params.position,
        *_penalty_columns(penalties, tokens),
        best_scores,
        best_tokens,
        chunk_maxima,
    )
    flags = {"HAS_DRAWS": draws is not None, "PENALISED": penalties is not None}
    _sample_tiles_kernel[(num_rows, num_tiles)](
        *columns, vocab_size, logits.stride(0), GROUPS=_TILE // 4, CHUNKS=chunks, num_warps=8, **flags
    )
    _sample_rows_kernel[(num_rows,)](
        *columns,
        scratch(_MAX_CHUNKS, dtype=torch.int32),
        scratch(_MAX_CANDIDATES),
        scratch(_MAX_CANDIDATES, dtype=torch.int32),
        tokens,
        vocab_size,
        logits.stride(0),
        num_tiles,
        TILES=triton.next_power_of_2(num_tiles),
        CHUNKS=chunks,
        CHUNK=_CHUNK,
        GATHERED=_GATHERED,
        MAX_CHUNKS=_MAX_CHUNKS,
        MAX_CANDIDATES=_MAX_CANDIDATES,
        BITS=_SIGNIFICANT_BITS[logits.dtype],
        SEARCH_TILE=min(_SEARCH_TILE, triton.next_power_of_2(vocab_size)) if vocab_size > 4 else 8,
        num_warps=8,
        **flags,
    )
    return tokens


def _penalty_columns(penalties: Penalties | None, unused: Tensor) -> tuple[Tensor, ...]:
    if penalties is None:
        return (unused,) * 5
    return (
        penalties.slots,
        penalties.repetition,
        penalties.frequency,
        penalties.presence,
        penalties.occurrences.addresses,
    )
