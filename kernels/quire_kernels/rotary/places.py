"""Where the heads of a step go: what rotation and the cache of one layer are told of its tokens. Data only."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadPlaces:
    """What `rotary.reference.rotary_embedding_and_cache` is told beside the heads, where none has a norm."""

    cos_sin: Tensor  # [max_positions, rotary_dim] float32
    positions: Tensor  # [T]
    k_cache: Tensor  # [num_blocks, block_size, Hkv, D]
    v_cache: Tensor
    slot_mapping: Tensor  # [T]
