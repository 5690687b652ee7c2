"""One whole decode step as one CUDA graph, random weights: time per step, per kernel, and against the floor.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/decode_step.py``. A prototype of what the worker
captures: embed, layers, logits, sampling and the advance of every slot. It loads no model and checks no text.
"""

import sys
from dataclasses import dataclass
from itertools import pairwise

import quire_kernels as ops
import torch
from quire_kernels.linear.gemv import linear_gemv
from torch import Tensor
from torch.nn.functional import embedding, linear

BLOCK_SIZE = 16
READ_BYTES_PER_S = 4.53e12  # best streaming read measured on one H200
MATRIX_FLOP_PER_S = 780e12  # bf16 matrix product measured on one H200


@dataclass(frozen=True)
class Shape:
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    qk_norm: bool


QWEN3_0_6B = Shape("Qwen3-0.6B", 28, 1024, 16, 8, 128, 3072, 151_936, True)
LLAMA_3_1_8B = Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14_336, 128_256, False)


class DecodeStep:
    """Weights, caches and slot state of one batch on the device, and the step that advances them."""

    def __init__(self, shape: Shape, batch: int, mean_len: int, temperature: float, gemv: bool) -> None:
        self.shape, self.gemv = shape, gemv
        generator = torch.Generator("cuda").manual_seed(0)

        def weight(*size: int) -> Tensor:
            return torch.randn(*size, device="cuda", dtype=torch.bfloat16, generator=generator) * 0.02

        q_size, kv_size = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.embedding = weight(shape.vocab, shape.hidden)
        self.layers = [
            {
                "qkv": weight(q_size + 2 * kv_size, shape.hidden),
                "o": weight(shape.hidden, q_size),
                "gate_up": weight(2 * shape.intermediate, shape.hidden),
                "down": weight(shape.hidden, shape.intermediate),
            }
            for _ in range(shape.layers)
        ]
        self.norm = torch.ones(shape.hidden, device="cuda", dtype=torch.bfloat16)
        self.head_norm = (
            torch.ones(shape.head_dim, device="cuda", dtype=torch.bfloat16) if shape.qk_norm else None
        )
        lengths = torch.randint(
            mean_len // 2, mean_len * 3 // 2, (batch,), generator=torch.Generator().manual_seed(1)
        )
        self.max_seq_len = mean_len * 3 // 2 + 256
        max_blocks = -(-self.max_seq_len // BLOCK_SIZE)
        num_blocks = batch * max_blocks + 1
        self.kv = torch.empty(
            (shape.layers, 2, num_blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim),
            device="cuda",
            dtype=torch.bfloat16,
        ).normal_(generator=generator)
        self.tables = (torch.randperm(num_blocks - 1, device="cuda").int() + 1).view(batch, max_blocks)
        self.starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32)
        self.seq_lens = lengths.int().cuda()
        self.tokens = torch.randint(shape.vocab, (batch,), device="cuda")
        frequencies = 10_000 ** -(torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
        angles = torch.outer(torch.arange(self.max_seq_len + 1024).float(), frequencies)
        self.cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1).cuda()
        self.temperature = torch.full((batch,), temperature, device="cuda")
        zero = torch.zeros(batch, device="cuda", dtype=torch.int32)
        self.off = {"top_k": zero, "top_p": zero + 1.0, "min_p": zero * 1.0, "sequence_index": zero}
        self.seed = torch.arange(batch, device="cuda")

    def floor_ms(self) -> float:
        shape, batch = self.shape, self.seq_lens.shape[0]
        weights = sum(w.numel() for w in self.layers[0].values()) * shape.layers + shape.vocab * shape.hidden
        kv_bytes = int(self.seq_lens.sum()) * shape.layers * 4 * shape.kv_heads * shape.head_dim
        matrix_s = max(2 * weights / READ_BYTES_PER_S, 2 * weights * batch / MATRIX_FLOP_PER_S)
        return 1e3 * (matrix_s + kv_bytes / READ_BYTES_PER_S)

    def project(self, x: Tensor, weight: Tensor) -> Tensor:
        return linear_gemv(x, weight) if self.gemv else linear(x, weight)

    def run(self) -> None:
        shape = self.shape
        positions = self.seq_lens.long() - 1
        blocks = self.tables.gather(1, (positions // BLOCK_SIZE).unsqueeze(1)).squeeze(1).long()
        slots = blocks * BLOCK_SIZE + positions % BLOCK_SIZE
        residual = embedding(self.tokens, self.embedding)
        x = ops.rms_norm(residual, self.norm, 1e-5)
        for index, layer in enumerate(self.layers):
            qkv = self.project(x, layer["qkv"]).view(-1, shape.heads + 2 * shape.kv_heads, shape.head_dim)
            q, k, v = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
            cache = self.kv[index]
            q = ops.rotary_embedding_and_cache(
                q, k, v, self.cos_sin, positions, cache[0], cache[1], slots, self.head_norm, self.head_norm
            )
            attended = ops.paged_attention(
                q,
                cache[0],
                cache[1],
                self.tables,
                self.starts,
                self.seq_lens,
                scale=shape.head_dim**-0.5,
                sliding_window=None,
                max_query_len=1,
                max_seq_len=self.max_seq_len,
            )
            x = self.project(attended.flatten(1), layer["o"])
            x, residual = ops.fused_add_rms_norm(x, residual, self.norm, 1e-5)
            x = self.project(ops.silu_and_mul(self.project(x, layer["gate_up"])), layer["down"])
            x, residual = ops.fused_add_rms_norm(x, residual, self.norm, 1e-5)
        logits = self.project(x, self.embedding)
        params = ops.SamplingTensors(
            temperature=self.temperature, seed=self.seed, position=self.seq_lens, **self.off
        )
        self.tokens.copy_(ops.sample(logits, params))
        self.seq_lens.add_(1)

    def capture(self) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.run()
        return graph


def step_ms(graph: torch.cuda.CUDAGraph, repeats: int = 20) -> float:
    """Return the median device time of one replay, in milliseconds."""
    for _ in range(3):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    for mark in marks[:-1]:
        mark.record()
        graph.replay()
    marks[-1].record()
    torch.cuda.synchronize()
    return sorted(a.elapsed_time(b) for a, b in pairwise(marks))[repeats // 2]


def kernel_table(graph: torch.cuda.CUDAGraph) -> str:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        graph.replay()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)[:12]
    return "\n".join(f"    {e.device_time_total / 1e3:8.3f} ms  {e.count:4d} x  {e.key[:70]}" for e in events)


def main() -> None:
    cases = [
        (shape, batch, mean_len, temperature, gemv)
        for shape in (QWEN3_0_6B, LLAMA_3_1_8B)
        for batch, mean_len, temperature, gemv in (
            (1, 256, 0.0, False),
            (1, 256, 0.0, True),
            (16, 8192, 0.0, False),
            (64, 600, 0.0, False),
            (256, 600, 0.0, False),
            (256, 600, 0.6, False),
            (1000, 300, 0.0, False),
        )
    ]
    for shape, batch, mean_len, temperature, gemv in cases:
        step = DecodeStep(shape, batch, mean_len, temperature, gemv)
        graph = step.capture()
        measured, floor = step_ms(graph), step.floor_ms()
        print(
            f"{shape.name} batch {batch} mean_len {mean_len} temperature {temperature} gemv {gemv}: "
            f"{measured:.3f} ms, floor {floor:.3f}, "
            f"{batch / measured:.1f} k tok/s, {floor / measured:.0%} of floor"
        )
        print(kernel_table(graph))
        sys.stdout.flush()
        del step, graph
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
