"""Reads a buffer once and keeps nothing but sums: the streaming read that floors are made of. Imports Triton."""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _read_all_kernel(values, sums, num_values, num_programs, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    offsets = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for start in range(program * BLOCK, num_values, num_programs * BLOCK):
        total += tl.load(values + start + offsets, mask=start + offsets < num_values, other=0.0)
    tl.store(sums + program, tl.sum(total))


def read_all(values: Tensor, num_programs: int, block: int, num_warps: int) -> Tensor:
    """One sum per program over `values [N]` float32; together they read every value once."""
    sums = torch.empty(num_programs, device=values.device, dtype=torch.float32)
    _read_all_kernel[(num_programs,)](
        values, sums, values.numel(), num_programs, BLOCK=block, num_warps=num_warps
    )
    return sums
