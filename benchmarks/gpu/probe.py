"""Measures the device: the best streaming read and the best bfloat16 matrix product, here and now. Knows no model.

On a device without CUDA both are measured with torch on the CPU, so that the suite can be tried anywhere.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.gpu.floor import Rates

_GIB = 2**30
_READ_BYTES = 8 * _GIB
_CPU_READ_BYTES = 2**26
_MATRIX_SIZES = ((8192, 8192, 8192), (16384, 8192, 8192), (8192, 14336, 4096), (16384, 28672, 4096))
_CPU_MATRIX_SIZES = ((512, 512, 512),)
_REPEATS = 10


def device_name() -> str:
    """Of the first device, as a file name has it."""
    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return name.lower().replace(" ", "-").replace("/", "-")


def measure_rates() -> Rates:
    """The best of a few ways for either."""
    rates = Rates(read_bytes_per_s=_best_read(), matrix_flop_per_s=_best_matrix())
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return rates


def _best_read() -> float:
    if not torch.cuda.is_available():
        values = torch.ones(_CPU_READ_BYTES // 4)
        return _CPU_READ_BYTES / _shortest_s(lambda: values.sum())
    num_bytes = min(_READ_BYTES, torch.cuda.mem_get_info()[0] // 2)
    values = torch.ones(num_bytes // 4, device="cuda", dtype=torch.float32)
    ways: list[Callable[[], object]] = [values.sum, values.max, *_triton_reads(values)]
    return 4 * values.numel() / min(_shortest_s(way) for way in ways)


def _triton_reads(values: torch.Tensor) -> list[Callable[[], object]]:
    from benchmarks.gpu.read_kernel import read_all

    num_cores = torch.cuda.get_device_properties(0).multi_processor_count
    return [
        lambda block=block, waves=waves, warps=warps: read_all(values, waves * num_cores, block, warps)
        for block in (4096, 8192)
        for waves in (4, 8, 16)
        for warps in (4, 8)
    ]


def _best_matrix() -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = _MATRIX_SIZES if device == "cuda" else _CPU_MATRIX_SIZES
    return max(_matrix_rate(device, *size) for size in sizes)


def _matrix_rate(device: str, rows: int, columns: int, inner: int) -> float:
    a = torch.randn(rows, inner, device=device, dtype=torch.bfloat16) * 0.02
    b = torch.randn(columns, inner, device=device, dtype=torch.bfloat16) * 0.02
    return 2 * rows * columns * inner / _shortest_s(lambda: a @ b.T)


def _shortest_s(work: Callable[[], object]) -> float:
    """Shortest of several runs, after a warm-up, by device events where there is a device."""
    for _ in range(3):
        work()
    times = [_cuda_s(work) if torch.cuda.is_available() else _cpu_s(work) for _ in range(_REPEATS)]
    return min(times)


def _cpu_s(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _cuda_s(work: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
