"""The products of one row, or of few, of a decoder layer over candidate launch settings, beside the library: the source of
the tuned table.

    PYTHONPATH=kernels python benchmarks/kernels/linear_tiles.py [ROWS [NAME...]]

Every product runs over enough different weights that none is in the second-level cache when its turn comes. The
library's time includes the gate or addition that the kernel folds in. Times are microseconds per projection.
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch
from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles
from quire_kernels.linear.gemv import linear_gemv
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import GemvConfig, RowsConfig
from torch import Tensor

SHAPES = {
    "0.6B qkv": (4096, 1024, "plain"),
    "0.6B o": (1024, 2048, "add"),
    "0.6B gate_up": (6144, 1024, "gated"),
    "0.6B down": (1024, 3072, "add"),
    "0.6B logits": (151_936, 1024, "plain"),
    "8B qkv": (6144, 4096, "plain"),
    "8B o": (4096, 4096, "add"),
    "8B gate_up": (28_672, 4096, "gated"),
    "8B down": (4096, 14_336, "add"),
    "8B logits": (128_256, 4096, "plain"),
}
_ROTATION_BYTES = 300_000_000
_COMPILERS = 14


Config = GemvConfig | RowsConfig


def candidates(num_rows: int) -> Iterator[Config]:
    if num_rows > 1:
        for strip, span, splits, stages in product((16, 32, 64), (64, 128, 256), (1, 2, 4), (3, 5)):
            yield RowsConfig(strip=strip, span=span, splits=splits, num_stages=stages)
        return
    for rows, span, warps in product((1, 2, 4, 8), (512, 1024, 2048, 4096), (2, 4, 8)):
        if 1024 <= rows * span <= 16384 and rows * span // warps <= 2048:
            for stages in (2, 4):
                yield GemvConfig(rows=rows, span=span, num_warps=warps, num_stages=stages)


class Case:
    """One projection."""

    def __init__(self, name: str, num_rows: int) -> None:
        num_outputs, num_inputs, self.kind = SHAPES[name]
        copies = max(2, _ROTATION_BYTES // (2 * num_outputs * num_inputs))
        self.weights = [_random(num_outputs, num_inputs) * 0.02 for _ in range(min(copies, 40))]
        self.x = _random(num_rows, num_inputs)
        self.out = _random(num_rows, num_outputs // 2 if self.kind == "gated" else num_outputs)

    def folded(self, weight: Tensor, config: Config) -> Tensor:
        add, gated = self.kind == "add", self.kind == "gated"
        if isinstance(config, RowsConfig):
            return linear_rows(self.x, weight, out=self.out, add=add, gated=gated, config=config)
        return linear_gemv(self.x, weight, out=self.out, add=add, gated=gated, config=config)

    def library(self, weight: Tensor) -> Tensor:
        if self.kind == "add":
            return self.out.addmm_(self.x, weight.t())
        if self.kind == "gated":
            return silu_and_mul_tiles(self.x @ weight.t())
        return torch.mm(self.x, weight.t(), out=self.out)

    def microseconds(self, launch: Callable[[Tensor], Tensor]) -> float:
        graph = torch.cuda.CUDAGraph()
        launch(self.weights[0])
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for weight in self.weights:
                launch(weight)
        times = []
        for _ in range(4):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            times.append(1e3 * start.elapsed_time(end) / len(self.weights))
        return min(times)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def measure(case: Case) -> list[tuple[float, Config]]:
    """Times of every candidate that compiles, best first."""
    configs = list(candidates(len(case.x)))

    def compiles(config: Config) -> bool:
        try:
            case.folded(case.weights[0], config)
        except Exception as error:  # noqa: BLE001 — a candidate may need more than the chip has
            print(f"    {config}: {type(error).__name__}", flush=True)
            return False
        return True

    with ThreadPoolExecutor(_COMPILERS) as pool:
        usable = list(pool.map(compiles, configs))
    times = [
        (case.microseconds(lambda weight, config=config: case.folded(weight, config)), config)
        for config, works in zip(configs, usable, strict=True)
        if works
    ]
    return sorted(times, key=lambda time: time[0])


def main(num_rows: int, names: list[str]) -> None:
    for name in names or SHAPES:
        case = Case(name, num_rows)
        library = case.microseconds(case.library)
        best, config = measure(case)[0]
        terabytes = case.weights[0].numel() * 2 / 1e12
        print(
            f"{name:13}: library {library:7.2f}, folded {best:7.2f} us ({terabytes / best * 1e6:.2f} TB/s) {config}",
            flush=True,
        )
        del case
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1, sys.argv[2:])
