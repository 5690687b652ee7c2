"""The arithmetic of launchers is that of kernels."""

import pytest

pytest.importorskip("triton")

import triton
from quire_kernels.cut import cdiv, next_power_of_2


def test_sizes_are_cut_as_triton_cuts_them() -> None:
    for size in (*range(1, 70), 4095, 4096, 4097, 128_256, 2**31):
        assert next_power_of_2(size) == triton.next_power_of_2(size)
        assert [cdiv(size, part) for part in (1, 7, 16, 128)] == [
            triton.cdiv(size, part) for part in (1, 7, 16, 128)
        ]
    assert cdiv(0, 16) == 0
