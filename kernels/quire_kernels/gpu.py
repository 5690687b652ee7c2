"""What kernels are cut by, and which of them can be: a GPU's multiprocessors, and whether Triton has Gluon.

Knows no shape and no operation. Which kernels a GPU's capability allows is asked of `dispatch.device`.
"""

from functools import cache
from importlib import import_module
from typing import Any

import torch


@cache
def num_multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def gluon_module(name: str) -> Any:
    """The module of a kernel in Gluon, by its full name; None where this Triton's Gluon, an experiment of its own, lacks
    what it needs.
    """
    try:
        return import_module(name)
    except (ImportError, AttributeError):
        return None
