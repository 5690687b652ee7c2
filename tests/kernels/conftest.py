"""Lets the Triton kernels run on a machine without a GPU: there the interpreter takes the compiler's
place.
"""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
