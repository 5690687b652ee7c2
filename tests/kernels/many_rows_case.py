"""What tests of products of many rows share: places of heads, the reference that rotates after a product, and a tolerance."""

import pytest
import torch
from quire_kernels.rotary.places import HeadPlaces
from quire_kernels.rotary.reference import rotary_embedding_and_cache
from torch import Tensor

ON_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
on_hopper = pytest.mark.skipif(not ON_HOPPER, reason="needs a Hopper GPU; Gluon has no interpreter")


def random(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype == expected.dtype
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error < 6e-3


def head_places(
    num_rows: int, num_kv_heads: int, dtype: torch.dtype = torch.bfloat16, device: str = "cuda"
) -> HeadPlaces:
    """Tokens in any order of positions and slots, and caches that hold no number yet."""
    shape = (2, num_rows // 16 + 2, 16, num_kv_heads, 128)
    caches = torch.full(shape, float("nan"), dtype=dtype, device=device)
    return HeadPlaces(
        cos_sin=torch.randn(num_rows, 128, device=device),
        positions=torch.randperm(num_rows, device=device),
        k_cache=caches[0],
        v_cache=caches[1],
        slot_mapping=torch.randperm(num_rows, device=device) + 16,
    )


def rotate_after(product: Tensor, places: HeadPlaces) -> tuple[Tensor, Tensor, Tensor]:
    """What the reference makes of a product: its queries, and the caches."""
    num_kv_heads = places.k_cache.shape[2]
    q, k, v = product.view(len(product), -1, 128).split(
        (product.shape[1] // 128 - 2 * num_kv_heads, num_kv_heads, num_kv_heads), dim=1
    )
    k_cache, v_cache = (torch.full_like(places.k_cache, float("nan")) for _ in range(2))
    rotated = rotary_embedding_and_cache(
        q, k, v, places.cos_sin, places.positions, k_cache, v_cache, places.slot_mapping
    )
    return rotated.flatten(1), k_cache, v_cache
