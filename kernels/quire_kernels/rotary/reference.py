"""Rotary embedding and the write into the paged KV cache in torch: what the kernels must compute."""

import torch
from torch import Tensor

from quire_kernels.norm.reference import rms_norm


def rotary_embedding(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate ``q [T, Hq, D]`` and ``k [T, Hkv, D]`` by their positions, in the half-split (NeoX) layout.

    ``cos_sin`` is float32 ``[max_positions, rotary_dim]``, the cosines in its first half and the sines in its
    second; dimensions from ``rotary_dim`` on pass through. Source: Su et al., "RoFormer" (2021).
    """
    cos, sin = cos_sin.float()[positions].unsqueeze(1).chunk(2, dim=-1)  # each [T, 1, rotary_dim / 2]
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def rotary_embedding_and_cache(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    q_norm_weight: Tensor | None = None,
    k_norm_weight: Tensor | None = None,
    eps: float = 1e-6,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Normalise (where weights are given) and rotate q and k, write k and v into the cache, return the new q.

    ``slot_mapping [T]`` is ``block * block_size + offset`` per token; rows of padding point into block 0, the
    scratch block. The caches are ``[num_blocks, block_size, Hkv, D]`` and are changed in place. Rotated
    values are rounded once, to the dtype of the tensor they end in. The caches hold k / ``k_scale`` and v /
    ``v_scale``; 8-bit ones saturate.
    """
    q_wide = q.float() if q_norm_weight is None else rms_norm(q.float(), q_norm_weight, eps)
    k_wide = k.float() if k_norm_weight is None else rms_norm(k.float(), k_norm_weight, eps)
    rotated_q, rotated_k = rotary_embedding(q_wide, k_wide, cos_sin, positions)
    write_to_cache(rotated_k, v, k_cache, v_cache, slot_mapping, k_scale, v_scale)
    return rotated_q.to(q.dtype)


def write_to_cache(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Store row t of ``k`` and ``v`` ``[T, Hkv, D]`` in cache slot ``slot_mapping[t]``."""
    block_size = k_cache.shape[1]
    block, offset = slot_mapping // block_size, slot_mapping % block_size
    k_cache[block, offset] = _stored(k, k_cache.dtype, k_scale)
    v_cache[block, offset] = _stored(v, v_cache.dtype, v_scale)


def _stored(values: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    if dtype.itemsize > 1:
        return (values if scale == 1.0 else values.float() * (1.0 / scale)).to(dtype)
    largest = torch.finfo(dtype).max
    return (values.float() * (1.0 / scale)).clamp(-largest, largest).to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = cos.shape[-1]
    wide = x.float()
    first, second, rest = wide[..., :half], wide[..., half : 2 * half], wide[..., 2 * half :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1).to(x.dtype)
