"""The projections of a decoder layer over candidate launch settings, beside the library: the source of the tuned table.

    PYTHONPATH=kernels python benchmarks/kernels/linear_tiles.py [RESULT.json]

Every product runs over enough different weights that none is in the second-level cache when its turn comes. The
library's time includes the norm, gate or addition that the kernel folds in. Times are microseconds per projection.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import torch
from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles
from quire_kernels.linear.gemv import linear_gemv
from quire_kernels.linear.rows import linear_rows
from quire_kernels.linear.tuning import GemvConfig, RowsConfig
from quire_kernels.norm.rows import rms_norm_rows
from torch import Tensor

SHAPES = {
    "0.6B qkv": (4096, 1024, "norm"),
    "0.6B o": (1024, 2048, "add"),
    "0.6B gate_up": (6144, 1024, "gated"),
    "0.6B down": (1024, 3072, "add"),
    "0.6B logits": (151_936, 1024, "norm"),
    "8B qkv": (6144, 4096, "norm"),
    "8B o": (4096, 4096, "add"),
    "8B gate_up": (28_672, 4096, "gated"),
    "8B down": (4096, 14_336, "add"),
    "8B logits": (128_256, 4096, "norm"),
}
BATCHES = (1, 8, 16, 32, 64, 128, 256)
_ROTATION_BYTES = 300_000_000
_SHARED_MEMORY_BYTES = 220_000
_COMPILERS = 14

Config = GemvConfig | RowsConfig


def candidates(num_rows: int, kind: str) -> Iterator[Config]:
    if num_rows == 1:
        for rows, span, warps in product((1, 2, 4), (1024, 2048, 4096), (4, 8)):
            if rows * span <= 8192:
                yield GemvConfig(rows=rows, span=span, num_warps=warps)
        return
    rows = min(128, max(16, num_rows))
    for outputs, span, warps, stages in product((16, 32, 64, 128), (64, 128, 256), (4, 8), (3, 5)):
        width = rows + outputs * (2 if kind == "gated" else 1)
        size = width * span * 2 * stages
        fragment = rows * outputs * (2 if kind == "gated" else 1) // (32 * warps)
        if (
            size <= _SHARED_MEMORY_BYTES
            and fragment <= 128
            and size >= 24_000
            and not (warps == 8 and outputs < 64)
        ):
            yield RowsConfig(rows=rows, outputs=outputs, span=span, num_warps=warps, num_stages=stages)


class Case:
    """One projection at one batch size."""

    def __init__(self, name: str, num_rows: int) -> None:
        num_outputs, num_inputs, self.kind = SHAPES[name]
        copies = max(2, _ROTATION_BYTES // (2 * num_outputs * num_inputs))
        self.weights = [_random(num_outputs, num_inputs) * 0.02 for _ in range(min(copies, 40))]
        self.x = _random(num_rows, num_inputs)
        self.norm = _random(num_inputs)
        self.out = _random(num_rows, num_outputs // 2 if self.kind == "gated" else num_outputs)
        self.num_rows = num_rows

    def folded(self, weight: Tensor, config: Config) -> Tensor:
        kernel = linear_gemv if self.num_rows == 1 else linear_rows
        options: dict[str, Any] = {"config": config, "out": self.out}
        if self.kind == "add":
            return kernel(self.x, weight, add=True, **options)
        return kernel(self.x, weight, norm_weight=self.norm, eps=1e-5, gated=self.kind == "gated", **options)

    def library(self, weight: Tensor) -> Tensor:
        if self.kind == "add":
            return self.out.addmm_(self.x, weight.t())
        normed = rms_norm_rows(self.x, self.norm, 1e-5)
        if self.kind == "gated":
            return silu_and_mul_tiles(normed @ weight.t())
        return torch.mm(normed, weight.t(), out=self.out)

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
    configs = list(candidates(case.num_rows, case.kind))

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


def main(file: str | None) -> None:
    rows = []
    for name, batch in product(SHAPES, BATCHES):
        case = Case(name, batch)
        library = case.microseconds(case.library)
        times = measure(case)
        gigabytes = case.weights[0].numel() * 2 / 1e9
        best, config = times[0]
        rows.append(
            {"name": name, "batch": batch, "library": library, "times": [(t, repr(c)) for t, c in times]}
        )
        print(
            f"{name:13} {batch:4}: library {library:7.2f}, folded {best:7.2f} us ({gigabytes / best * 1e3:.2f} TB/s) {config}",
            flush=True,
        )
        if file:
            with open(file, "w", encoding="utf-8") as target:
                json.dump(rows, target)
        del case
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
