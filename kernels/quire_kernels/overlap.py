"""Programmatic dependent launch: a kernel is set up while the one before it ends.

Every kernel of such a chain calls `wait_for_inputs` before it reads what the chain wrote, so that a kernel which has
ended implies all before it. Source: NVIDIA's programming guide, "Programmatic Dependent Launch"; Hopper and later.
"""

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def finish_launching(OVERLAP: tl.constexpr):
    """Lets the next kernel be set up as soon as every program of this one has come here."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_inputs(OVERLAP: tl.constexpr):
    """Waits until the kernel before has ended and what it wrote can be read."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def prefetch(addresses):
    """Asks for the 128 bytes around each address to be brought into the second-level cache, and waits for nothing."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [addresses], dtype=tl.int32, is_pure=False, pack=1
    )


@cache
def overlaps_launches(device: torch.device) -> bool:
    """Whether kernels on a device overlap their launches."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def launch_options(overlap: bool) -> dict[str, Any]:
    """Launch options of a kernel that calls `wait_for_inputs`; without them the calls do nothing."""
    return {"launch_pdl": True} if overlap else {}
