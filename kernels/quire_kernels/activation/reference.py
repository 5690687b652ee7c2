"""Gated activations in torch: what the kernels must compute."""

import torch
from torch import Tensor


def silu_and_mul(x: Tensor) -> Tensor:
    """Return ``silu(gate) * up`` for ``x = [gate, up]``: ``[..., 2 * I]`` in, ``[..., I]`` out, float32
    inside.

    Source: Shazeer, "GLU Variants Improve Transformer" (2020).
    """
    gate, up = x.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)
