"""Which implementation turns queries and keys by their positions, and writes keys and values into the cache."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.rotary import reference as rotary_reference


def rotary_embedding(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    if device.runs_triton(q):
        from quire_kernels.rotary.embedding import rotary_embedding_heads

        return rotary_embedding_heads(q, k, cos_sin, positions)
    return rotary_reference.rotary_embedding(q, k, cos_sin, positions)


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
    if device.runs_triton(q):
        from quire_kernels.rotary.heads import rotary_embedding_cache

        implementation = rotary_embedding_cache
    else:
        implementation = rotary_reference.rotary_embedding_and_cache
    return implementation(
        q,
        k,
        v,
        cos_sin,
        positions,
        k_cache,
        v_cache,
        slot_mapping,
        q_norm_weight,
        k_norm_weight,
        eps,
        k_scale,
        v_scale,
    )
