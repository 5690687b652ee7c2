"""Products of many rows of a decoder layer by our kernel in both of its tiles, beside the library: to check
`linear/tiling.py` by.

    PYTHONPATH=kernels python benchmarks/kernels/linear_many_rows.py [SECONDS [NAME...]]

A chip at its power limit slows down within tenths of a second, so each product goes on for some SECONDS (0.8), of
which the last three fifths count; with 0, for a few replays. Several weights take turns. The library's time includes the
gate or the addition that our kernel folds in. Times are microseconds per product. Has not run on a GPU yet.
"""

import sys
from collections.abc import Callable

import torch
from quire_kernels.activation.silu_and_mul import silu_and_mul_tiles
from quire_kernels.linear.many_rows import linear_many_rows
from quire_kernels.linear.tiling import TALL, TALL_GATED, WIDE, ManyRowsConfig
from torch import Tensor

SHAPES = {
    "8B gate_up": (28_672, 4096, "gated"),
    "8B qkv": (6144, 4096, "plain"),
    "8B o": (4096, 4096, "add"),
    "8B down": (4096, 14_336, "add"),
    "Qwen2.5-7B gate_up": (37_888, 3584, "gated"),
    "0.6B gate_up": (6144, 1024, "gated"),
}
NUM_ROWS = (256, 512, 640, 768, 1024, 2048, 4096, 8192)
_NUM_WEIGHTS = 6


class Case:
    """One projection of so many rows."""

    def __init__(self, name: str, num_rows: int) -> None:
        num_outputs, num_inputs, self.kind = SHAPES[name]
        self.weights = [_random(num_outputs, num_inputs) * 0.02 for _ in range(_NUM_WEIGHTS)]
        self.x = _random(num_rows, num_inputs)
        self.out = _random(num_rows, num_outputs // 2 if self.kind == "gated" else num_outputs)
        self.flop = 2 * num_rows * num_outputs * num_inputs

    def ours(self, config: ManyRowsConfig | None) -> Callable[[Tensor], Tensor]:
        add, gated = self.kind == "add", self.kind == "gated"
        return lambda weight: linear_many_rows(
            self.x, weight, out=self.out, add=add, gated=gated, config=config
        )

    def library(self, weight: Tensor) -> Tensor:
        if self.kind == "add":
            return self.out.addmm_(self.x, weight.t())
        if self.kind == "gated":
            return silu_and_mul_tiles(self.x @ weight.t())
        return torch.mm(self.x, weight.t(), out=self.out)

    def microseconds(self, launch: Callable[[Tensor], Tensor], seconds: float) -> float:
        graph = torch.cuda.CUDAGraph()
        launch(self.weights[0])
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for weight in self.weights:
                launch(weight)
        replays = max(5, int(seconds * 650e12 / self.flop / len(self.weights)))
        events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
        events[0].record()
        for event in events[1:]:
            graph.replay()
            event.record()
        torch.cuda.synchronize()
        first = replays * 2 // 5
        return 1e3 * events[first].elapsed_time(events[-1]) / (replays - first) / len(self.weights)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def main(seconds: float, names: list[str]) -> None:
    for name in names or SHAPES:
        for num_rows in NUM_ROWS:
            case = Case(name, num_rows)
            launches = {
                "library": case.library,
                "tall": case.ours(TALL),
                "tall, to and fro": case.ours(TALL_GATED),
                "wide": case.ours(WIDE),
                "chosen": case.ours(None),
            }
            times = {label: case.microseconds(launch, seconds) for label, launch in launches.items()}
            figures = ", ".join(
                f"{label} {time:8.1f} ({case.flop / time / 1e6:3.0f} TFLOP/s)"
                for label, time in times.items()
            )
            print(f"{name:18} {num_rows:5}: {figures}", flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 0.8, sys.argv[2:])
