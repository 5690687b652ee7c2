"""The matrix-vector kernel over candidate launch settings, on Llama-3.1-8B and Qwen3-0.6B shapes: TB/s of
weight read.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/gemv_tiles.py``.
"""

from itertools import product

import torch
from quire_kernels.linear.gemv import linear_gemv

SHAPES = {
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate_up": (28_672, 4096),
    "8B down": (4096, 14_336),
    "0.6B qkv": (4096, 1024),
    "0.6B down": (1024, 3072),
}
_ROTATION_BYTES = 400_000_000  # several times the second-level cache


def main() -> None:
    for name, (outputs, inputs) in SHAPES.items():
        copies = max(2, _ROTATION_BYTES // (2 * outputs * inputs))
        weights = torch.randn(copies, outputs, inputs, device="cuda", dtype=torch.bfloat16)
        x = torch.randn(1, inputs, device="cuda", dtype=torch.bfloat16)
        rates = {}
        for rows, span, warps in product((1, 2, 4), (512, 1024, 2048, 4096), (2, 4, 8)):
            if span > 2 * inputs:
                continue
            options = {"rows": rows, "span": span, "num_warps": warps}
            linear_gemv(x, weights[0], **options)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for weight in weights:
                    linear_gemv(x, weight, **options)
            graph.replay()
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            rates[f"rows{rows}/span{span}/w{warps}"] = weights.numel() * 2 / start.elapsed_time(end) / 1e9
        ranked = sorted(rates.items(), key=lambda item: -item[1])
        print(
            name,
            ", ".join(f"{key} {rate:.2f}" for key, rate in ranked[:4]),
            f"worst {ranked[-1][1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
