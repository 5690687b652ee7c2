"""Triton sampler: one pass over the logits, then a search among the few that can win. Truth: `sampling/reference.py`.

Two launches of fixed size, neither of which waits for the host or depends on a value: `tile.py`, then `masked_row.py`.
"""

import torch
from torch import Tensor

from quire_kernels.cut import cdiv, next_power_of_2
from quire_kernels.overlap import launch_options, overlaps_launches
from quire_kernels.sampling.masked_row import sample_rows_kernel
from quire_kernels.sampling.params import Penalties, SamplingTensors
from quire_kernels.sampling.tile import sample_tiles_kernel

_TILE = 4096  # tokens that a program of `tiles` looks at at a time
_TILES = 4  # of a program, one after another
_TILE_WARPS = 4
_TILE_REGISTERS = 96  # what rows without penalties need; with them some are spilled
_PARTS = 8  # of a tile: as many as a thread holds groups of four tokens
_CHUNK = 64  # tokens that share a maximum
_SETS = 32  # of chunks: without masks the best of each is read again first
_ROW_WARPS = 8
_ROW_REGISTERS = 128  # for two programs on a multiprocessor
_GATHERED = 16  # chunks read again at a time
_MAX_CHUNKS = 1024  # read again per row under masks
_MAX_CANDIDATES = 2048
_SEARCH_TILE = 2048  # tokens per step of a search over a whole row
# Bits of a float32 that can differ between values of a narrower type: the search looks at no others.
_SIGNIFICANT_BITS = {torch.float32: 32, torch.bfloat16: 16, torch.float16: 19}


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
    num_tiles = cdiv(vocab_size, _TILE)
    chunks = _TILE // _CHUNK

    def scratch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty((num_rows, *shape), dtype=dtype, device=device)

    masses, chunk_maxima = scratch(num_tiles), scratch(num_tiles, chunks)
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
        masses,
        chunk_maxima,
    )
    overlap = overlaps_launches(device)
    flags = {"HAS_DRAWS": draws is not None, "PENALISED": penalties is not None, "OVERLAP": overlap}
    flags |= launch_options(overlap)
    sample_tiles_kernel[(num_rows, cdiv(num_tiles, _TILES))](
        *columns,
        vocab_size,
        logits.stride(0),
        num_tiles,
        GROUPS=_TILE // 4,
        TILES=_TILES,
        CHUNKS=chunks,
        PARTS=_PARTS,
        num_warps=_TILE_WARPS,
        maxnreg=_TILE_REGISTERS,
        **flags,
    )
    sample_rows_kernel[(num_rows,)](
        *columns,
        scratch(num_tiles, chunks, dtype=torch.int32),
        scratch(_MAX_CANDIDATES),
        scratch(_MAX_CANDIDATES, dtype=torch.int32),
        tokens,
        vocab_size,
        logits.stride(0),
        num_tiles,
        TILES=next_power_of_2(num_tiles),
        CHUNKS=chunks,
        SETS=min(_SETS, next_power_of_2(num_tiles) * chunks),
        CHUNK=_CHUNK,
        PARTS=_PARTS,
        GATHERED=_GATHERED,
        MAX_CHUNKS=_MAX_CHUNKS,
        MAX_CANDIDATES=_MAX_CANDIDATES,
        BITS=_SIGNIFICANT_BITS[logits.dtype],
        SEARCH_TILE=min(_SEARCH_TILE, next_power_of_2(vocab_size)) if vocab_size > 4 else 8,
        num_warps=_ROW_WARPS,
        maxnreg=_ROW_REGISTERS,
        enable_fp_fusion=False,  # sums are rounded as the reference rounds them
        **flags,
    )
    return tokens


def _penalty_columns(penalties: Penalties | None, unused: Tensor) -> tuple[Tensor, ...]:
    if penalties is None:
        return (unused,) * 7
    return (
        penalties.slots,
        penalties.repetition,
        penalties.frequency,
        penalties.presence,
        penalties.occurrences.addresses,
        penalties.biases.rows,
        penalties.biases.words,
    )
