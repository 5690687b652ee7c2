"""What a decode step brings to attention that is not in the cache yet: of each sequence a token. Data only."""

from dataclasses import dataclass

import torch
from torch import Tensor

_MAX_GROUP = 15  # query heads that share a tile of 16 rows with their key head
_HEAD_DIM = 128


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """What `rotary.reference.rotary_embedding_and_cache` is told beside q and the caches, q being as the projection left it."""

    k: Tensor  # [T, Hkv, D]
    v: Tensor
    cos_sin: Tensor  # [max_positions, rotary_dim] float32
    positions: Tensor  # [T]
    slot_mapping: Tensor  # [T]
    q_norm_weight: Tensor | None
    k_norm_weight: Tensor | None
    eps: float
    settled: bool
    """Whether an ordinary launch lies between this one and whatever wrote the tables and the earlier keys; see
    `dispatch.rotary_decode_attention`.
    """

    def suit_pages(self, q: Tensor, k_cache: Tensor, num_rows: int) -> bool:
        """Whether the kernel that copies pages can rotate them, given that it takes this q and caches like this one."""
        shapes_fit = self.k.shape == self.v.shape == (q.shape[0], *k_cache.shape[2:])
        return (
            shapes_fit
            and q.shape[0] == num_rows
            and q.shape[1] <= _MAX_GROUP * k_cache.shape[2]
            and q.shape[2] == self.cos_sin.shape[1] == _HEAD_DIM
            and q.dtype == self.k.dtype == self.v.dtype
            and self.cos_sin.dtype == torch.float32
            and (self.q_norm_weight is None) == (self.k_norm_weight is None)
            and all(each.stride(-1) == 1 for each in (self.k, self.v, self.cos_sin))
        )
