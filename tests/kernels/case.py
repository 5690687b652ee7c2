"""What the tests of Triton kernels share: where they run, in which types, and when two results are equal.

The interpreter, which takes the compiler's place where there is no GPU, multiplies bfloat16 matrices wrongly without an
error: there everything is float32 and small.
"""

import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
ON_HOPPER = ON_GPU and torch.cuda.get_device_capability()[0] == 9
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16] if ON_GPU else [torch.float32]
WIDE_DTYPES = [dtype for dtype in DTYPES if dtype is not torch.float16]  # in which nothing is too large
HAS_FP8 = not ON_GPU or torch.cuda.get_device_capability() >= (8, 9)
BLOCK_SIZE = 16


def relative_error(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.double() - expected.double()).norm()
    return float(difference / expected.double().norm().clamp(min=1e-30))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert not actual.isnan().any()
    assert relative_error(actual, expected) < (2e-6 if actual.dtype == torch.float32 else 6e-3)


def assert_product_close(actual: Tensor, expected: Tensor) -> None:
    """As `assert_close`; sums of thousands of products are further apart where they are taken in another order."""
    assert actual.dtype == expected.dtype
    assert not actual.isnan().any()
    assert relative_error(actual, expected) < (5e-6 if actual.dtype == torch.float32 else 6e-3)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)
