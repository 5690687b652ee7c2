"""Decode and prefill attention over candidate launch settings: microseconds and share of the measured
ceilings.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/attention_tiles.py``. What wins here goes, by
hand, into `quire_kernels/attention/tuning.py`.
"""

from collections.abc import Callable
from itertools import product

import torch
from quire_kernels.attention.paged import paged_attention_mixed, schedule_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig
from triton.runtime.errors import OutOfResources

READ_BYTES_PER_S = 4.53e12
MATRIX_FLOP_PER_S = 780e12
BLOCK_SIZE, KV_HEADS, HEAD_DIM = 16, 8, 128


def graph_us(run: Callable[[], object], repeats: int = 20) -> float:
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    graph.replay()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3 / repeats


def make(batch: int, query_len: int, mean_len: int, heads: int, spread: bool) -> tuple[torch.Tensor, ...]:
    low, high = (mean_len // 4, mean_len * 7 // 4) if spread else (mean_len, mean_len + 1)
    seq_lens = torch.randint(low, high, (batch,), dtype=torch.int32, device="cuda")
    max_blocks = -(-high // BLOCK_SIZE)
    num_blocks = batch * max_blocks + 1
    blocks = (num_blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    cache = torch.randn(2, *blocks, device="cuda", dtype=torch.bfloat16)
    tables = (torch.randperm(num_blocks - 1, device="cuda").int() + 1).view(batch, max_blocks)
    starts = torch.arange(batch + 1, device="cuda", dtype=torch.int32) * query_len
    q = torch.randn(batch * query_len, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    return q, cache[0], cache[1], tables, starts, seq_lens


def best(title: str, floor_us: float, timings: dict[str, float]) -> None:
    ranked = sorted(timings.items(), key=lambda item: item[1])
    shown = ", ".join(f"{name} {us:.1f}" for name, us in ranked[:4])
    best_us, worst_us = ranked[0][1], ranked[-1][1]
    share = f"floor {floor_us:.1f} us ({floor_us / best_us:.0%})"
    print(f"{title}: {share}; {shown}; worst {worst_us:.1f}", flush=True)


def main() -> None:
    options = {"scale": HEAD_DIM**-0.5, "sliding_window": None}
    for heads, batch, mean_len in (
        (32, 1, 512), (32, 1, 32768), (32, 16, 8192), (32, 1000, 300),
        (16, 64, 600), (16, 256, 600), (16, 1000, 300),
    ):  # fmt: skip
        case = make(batch, 1, mean_len, heads, spread=batch > 16)
        floor = int(case[-1].sum()) * 4 * KV_HEADS * HEAD_DIM / READ_BYTES_PER_S * 1e6
        splits = (8, 16, 32, 64) if batch == 1 else (4, 8, 16) if batch == 16 else (1, 2, 4)
        timings = {}
        for tile, num_splits, warps, stages in product((64, 128), splits, (2, 4), (2, 3, 5)):
            config = DecodeConfig(
                tile=tile, num_splits=num_splits, min_split=128, num_warps=warps, num_stages=stages
            )
            timings[f"tile{tile}/split{num_splits}/w{warps}/s{stages}"] = graph_us(
                lambda config=config, case=case, mean_len=mean_len: paged_attention_mixed(
                    *case, **options, max_query_len=1, max_seq_len=2 * mean_len, decode=config
                )
            )
        best(f"decode heads {heads} batch {batch} mean {mean_len}", floor, timings)
    for batch, query_len, seq_len in ((4, 2048, 2048), (1, 256, 4096), (8, 256, 256)):
        case = make(batch, query_len, seq_len, 32, spread=False)
        flops = batch * 4 * 32 * HEAD_DIM * query_len * (seq_len - query_len / 2)
        timings = {}
        for rows, tile, warps, stages in product((64, 128), (64, 128), (4, 8), (2, 3, 5)):
            config = PrefillConfig(rows=rows, tile=tile, num_warps=warps, num_stages=stages)
            try:
                schedule = schedule_attention(
                    *case[-2:],
                    torch.tensor([batch], dtype=torch.int32, device="cuda"),
                    num_tokens=batch * query_len,
                    num_heads=32,
                    num_kv_heads=KV_HEADS,
                    head_dim=HEAD_DIM,
                    sliding_window=None,
                    prefill=config,
                )
                timings[f"rows{rows}/tile{tile}/w{warps}/s{stages}"] = graph_us(
                    lambda schedule=schedule, case=case, query_len=query_len, seq_len=seq_len: (
                        paged_attention_mixed(
                            *case, **options, max_query_len=query_len, max_seq_len=seq_len, schedule=schedule
                        )
                    ),
                    repeats=5,
                )
            except (
                OutOfResources
            ) as error:  # a setting that does not fit the shared memory is simply no candidate
                print(f"  {rows} {tile} {warps} {stages}: {type(error).__name__}")
        best(f"prefill {batch} x {query_len} of {seq_len}", flops / MATRIX_FLOP_PER_S * 1e6, timings)


if __name__ == "__main__":
    main()
