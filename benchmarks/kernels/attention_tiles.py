"""Decode and prefill attention over candidate launch settings: checked against the reference, then timed in a graph.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/attention_tiles.py``. What wins goes, by hand, into
`quire_kernels/attention/tuning.py`. Prefill tables are padded to 1,024 rows, as in a captured step.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import torch
from quire_kernels.attention.paged import paged_attention_mixed, schedule_prefill
from quire_kernels.attention.prefill import paged_attention_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.tuning import DecodeConfig, PrefillConfig
from torch import Tensor
from triton.runtime.errors import OutOfResources

READ_BYTES_PER_S = 4.53e12  # best streaming read measured on one H200
MATRIX_FLOP_PER_S = 785e12  # bfloat16 matrix product measured on one H200
BLOCK_SIZE, KV_HEADS, HEAD_DIM, ROWS = 16, 8, 128, 1024
LAUNCHES, COMPILERS, SHOWN = 10, 14, 6
TOLERANCE = 6e-3  # of the norm, bfloat16
SHARED_BYTES = 227 << 10  # of a program on capability 9.0

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def main() -> None:
    torch.manual_seed(0)
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    print(torch.cuda.get_device_name())
    chat = torch.randint(64, 1150, (256,)).tolist()
    for title, heads, seq_lens in (
        ("decode 1 x 512", 32, [512]),
        ("decode 1 x 32768", 32, [32768]),
        ("decode 16 x 4096..12288", 32, torch.randint(4096, 12289, (16,)).tolist()),
        ("decode 64 x 64..1150", 16, chat[:64]),
        ("decode 256 x 64..1150", 16, chat),
        ("decode 1000 x 300", 32, [300] * 1000),
    ):
        case = make([1] * len(seq_lens), seq_lens, heads)
        floor_us = sum(seq_lens) * 4 * KV_HEADS * HEAD_DIM / READ_BYTES_PER_S * 1e6
        runs = {name: decode_run(case, config) for name, config in decode_candidates(seq_lens)}
        show(title, floor_us, measure(case, runs))
    for title, query_lens, seq_lens in (
        ("prefill 4 x 2048", [2048] * 4, [2048] * 4),
        ("prefill 1 x 256 of 4096", [256], [4096]),
        ("prefill 1 x 256 of 256", [256], [256]),
        ("prefill 1 x 1024 of 16384", [1024], [16384]),
        ("prefill 200 x 10", [10] * 200, [10] * 200),
    ):
        case = make(query_lens, seq_lens, 32, rows=ROWS)
        pairs = sum(new * (seen - new / 2) for new, seen in zip(query_lens, seq_lens, strict=True))
        floor_us = pairs * 4 * 32 * HEAD_DIM / MATRIX_FLOP_PER_S * 1e6
        runs = {name: prefill_run(case, config) for name, config in prefill_candidates(processors)}
        show(title, floor_us, measure(case, runs))


def make(query_lens: list[int], seq_lens: list[int], heads: int, rows: int = 0) -> Case:
    """Random caches and tables, padded to ``rows`` by rows without a query token."""
    padding = max(rows - len(seq_lens), 0)
    lengths = torch.tensor(seq_lens + [1] * padding, dtype=torch.int32, device="cuda")
    starts = torch.tensor([0, *query_lens] + [0] * padding, device="cuda").cumsum(0, dtype=torch.int32)
    num_blocks = [-(-seq_len // BLOCK_SIZE) for seq_len in seq_lens]
    blocks = (sum(num_blocks) + 1, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
    cache = torch.randn(2, *blocks, device="cuda", dtype=torch.bfloat16)
    shuffled = torch.randperm(sum(num_blocks), device="cuda").int() + 1
    tables = torch.zeros((len(lengths), max(num_blocks)), dtype=torch.int32, device="cuda")
    for row, of_row in enumerate(shuffled.split(num_blocks)):
        tables[row, : len(of_row)] = of_row
    q = torch.randn(sum(query_lens), heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    return q, cache[0], cache[1], tables, starts, lengths


def decode_candidates(seq_lens: list[int]) -> Iterator[tuple[str, DecodeConfig]]:
    programs = len(seq_lens) * KV_HEADS
    for num_splits, tile, warps, stages in product((1, 2, 4, 8, 16, 32, 64), (64, 128), (2, 4), (2, 3, 5)):
        if num_splits > 1 and (programs * num_splits > 8192 or max(seq_lens) // num_splits < 32):
            continue
        yield (
            f"{num_splits} splits, tile {tile}, w{warps}, s{stages}",
            DecodeConfig(tile=tile, num_splits=num_splits, min_split=128, num_warps=warps, num_stages=stages),
        )


def prefill_candidates(processors: int) -> Iterator[tuple[str, PrefillConfig]]:
    for rows, tile, stages, min_split in product((64, 128), (64, 128), (2, 3, 4), (256, 512)):
        if (rows + 2 * tile * stages) * 2 * HEAD_DIM > SHARED_BYTES:
            continue
        warps = rows // 16
        yield (
            f"{rows} x {tile}, s{stages}, splits of {min_split}",
            PrefillConfig(
                rows=rows, tile=tile, num_warps=warps, num_stages=stages, min_split=min_split,
                num_programs=8 // warps * processors // KV_HEADS,
            ),
        )  # fmt: skip


def decode_run(case: Case, config: DecodeConfig) -> Callable[[], Tensor]:
    options = {"scale": HEAD_DIM**-0.5, "sliding_window": None, "max_query_len": 1, "max_seq_len": 1}
    return lambda: paged_attention_mixed(*case, **options, decode=config)


def prefill_run(case: Case, config: PrefillConfig) -> Callable[[], Tensor]:
    q, k_cache, v_cache, tables, starts, lengths = case
    schedule = schedule_prefill(
        starts, lengths, num_tokens=q.shape[0], num_heads=q.shape[1], num_kv_heads=KV_HEADS, head_dim=HEAD_DIM,
        sliding_window=None, config=config,
    )  # fmt: skip
    out = torch.full_like(q, float("nan"))

    def run() -> Tensor:
        paged_attention_prefill(q, k_cache, v_cache, tables, out, scale=HEAD_DIM**-0.5, schedule=schedule)
        return out

    return run


def measure(case: Case, runs: dict[str, Callable[[], Tensor]]) -> dict[str, tuple[float, float]]:
    """Return microseconds and error by candidate; one that needs more than the chip has is left out."""
    options = {"scale": HEAD_DIM**-0.5, "sliding_window": None, "max_query_len": 1, "max_seq_len": 1}
    truth = paged_attention(*case, **options).double()

    def compiles(run: Callable[[], Tensor]) -> bool:
        try:
            run()
        except OutOfResources:
            return False
        return True

    with ThreadPoolExecutor(COMPILERS) as pool:
        fit = dict(zip(runs, pool.map(compiles, runs.values()), strict=True))
    results = {}
    for name, run in runs.items():
        if fit[name]:
            # What is checked is a second launch: it finds the arrivals as the first one left them.
            error = float((run().double() - truth).norm() / truth.norm())
            results[name] = (graph_us(run), error)
    return results


def graph_us(run: Callable[[], object]) -> float:
    """Return the best of three replays, per launch."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    graph.replay()
    times = []
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / LAUNCHES)
    return min(times)


def show(title: str, floor_us: float, results: dict[str, tuple[float, float]]) -> None:
    """Print the fastest candidates, and every wrong one."""
    print(f"{title}: floor {floor_us:.1f} us")
    ranked = sorted(results.items(), key=lambda item: item[1][0])
    for place, (name, (us, error)) in enumerate(ranked):
        # NaN, of rows that were never written, is no tolerable error either.
        wrong = not error < TOLERANCE
        if place < SHOWN or wrong:
            print(f"  {us:8.1f} us  {floor_us / us:5.0%}  {'WRONG  ' * wrong}{name}", flush=True)


if __name__ == "__main__":
    main()
