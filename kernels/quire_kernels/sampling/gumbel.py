"""Triton sampler: one pass over the logits, then a search among the few that can win. Truth: `sampling/reference.py`.

Two launches of fixed size, neither of which waits for the host or depends on a value: `tile.py`, then `masked_row.py`.
"""

import torch
import triton
from torch import Tensor

from quire_kernels.sampling.masked_row import sample_rows_kernel
from quire_kernels.sampling.params import Penalties, SamplingTensors
from quire_kernels.sampling.tile import sample_tiles_kernel

_TILE = 4096  # tokens per program of `tiles`
_CHUNK = 128  # tokens that share a maximum
_GATHERED = 16  # chunks read again at a time
_MAX_CHUNKS = 512  # read again per row under masks
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
    num_tiles = triton.cdiv(vocab_size, _TILE)
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
    flags = {"HAS_DRAWS": draws is not None, "PENALISED": penalties is not None}
    sample_tiles_kernel[(num_rows, num_tiles)](
        *columns, vocab_size, logits.stride(0), GROUPS=_TILE // 4, CHUNKS=chunks, num_warps=8, **flags
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
        TILES=triton.next_power_of_2(num_tiles),
        CHUNKS=chunks,
        CHUNK=_CHUNK,
        GATHERED=_GATHERED,
        MAX_CHUNKS=_MAX_CHUNKS,
        MAX_CANDIDATES=_MAX_CANDIDATES,
        BITS=_SIGNIFICANT_BITS[logits.dtype],
        SEARCH_TILE=min(_SEARCH_TILE, triton.next_power_of_2(vocab_size)) if vocab_size > 4 else 8,
        num_warps=8,
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
