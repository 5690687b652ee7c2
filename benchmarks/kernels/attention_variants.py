"""Ways to cut decode attention, beside each other: checked against the reference, then timed in one graph of 20 launches.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/attention_variants.py``. "by sequence" splits every
sequence alike and merges in a second launch; "streams" gives every program an equal run of key tiles over all
sequences, from a schedule made once per step (its cost is a column of its own). What wins goes, by hand, into
`quire_kernels/attention/tuning.py`. Ends with mixed batches over tables padded to 1,024 rows.
"""

from collections.abc import Callable
from itertools import product

import torch
from quire_kernels.attention.paged import paged_attention_mixed, schedule_attention
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.schedule import AttentionSchedule
from quire_kernels.attention.streams import paged_attention_streams
from quire_kernels.attention.tuning import DecodeConfig, StreamConfig
from torch import Tensor

READ_BYTES_PER_S = 4.53e12  # best streaming read measured on one H200
BLOCK_SIZE, KV_HEADS, HEAD_DIM, LAUNCHES = 16, 8, 128, 20
TOLERANCE = 6e-3  # of the norm, bfloat16

MIXED_OPTIONS = {
    "scale": HEAD_DIM**-0.5, "sliding_window": None, "max_query_len": 2048, "max_seq_len": 4096
}  # fmt: skip

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def graph_us(run: Callable[[], object], launches: int = LAUNCHES) -> float:
    """Return the best of three replays, per launch."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(launches):
            run()
    graph.replay()
    times = []
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / launches)
    return min(times)


def make(query_lens: list[int], seq_lens: list[int], heads: int, rows: int | None = None) -> Case:
    """Random caches and tables; with ``rows`` the tables are padded by rows without a query token."""
    padding = (rows or len(seq_lens)) - len(seq_lens)
    lengths = torch.tensor(seq_lens + [1] * padding, dtype=torch.int32, device="cuda")
    queries = torch.tensor([0, *query_lens] + [0] * padding, device="cuda")
    starts = queries.cumsum(0, dtype=torch.int32)
    num_blocks = [-(-seq_len // BLOCK_SIZE) for seq_len in seq_lens]
    cache = torch.randn(
        2, sum(num_blocks) + 1, BLOCK_SIZE, KV_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16
    )
    shuffled = torch.randperm(sum(num_blocks), device="cuda").int() + 1
    tables = torch.zeros((len(lengths), max(num_blocks)), dtype=torch.int32, device="cuda")
    for row, blocks in enumerate(shuffled.split(num_blocks)):
        tables[row, : len(blocks)] = blocks
    q = torch.randn(sum(query_lens), heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    return q, cache[0], cache[1], tables, starts, lengths


def schedule_of(case: Case, stream: StreamConfig | None) -> AttentionSchedule:
    q, *_, starts, lengths = case
    return schedule_attention(
        starts,
        lengths,
        None,
        num_tokens=q.shape[0],
        num_heads=q.shape[1],
        num_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        sliding_window=None,
        stream=stream,
    )


def decode_variants(case: Case) -> dict[str, tuple[float, float]]:
    """Return microseconds and error by variant."""
    max_seq_len = int(case[-1].max())
    options = {
        "scale": HEAD_DIM**-0.5, "sliding_window": None, "max_query_len": 1, "max_seq_len": max_seq_len
    }  # fmt: skip
    truth = paged_attention(*case, **options).double()
    results: dict[str, tuple[float, float]] = {}

    def measure(name: str, run: Callable[[], Tensor]) -> None:
        error = float((run().double() - truth).norm() / truth.norm())
        results[name] = (graph_us(run), error)

    programs = case[-1].shape[0] * KV_HEADS
    for num_splits, stages in product((1, 2, 4, 8, 16, 32, 64), (3, 5)):
        if not 128 <= programs * num_splits <= 8192 or max_seq_len // num_splits < 128:
            continue
        config = DecodeConfig(tile=64, num_splits=num_splits, min_split=128, num_warps=4, num_stages=stages)
        measure(
            f"by sequence, {num_splits} splits, s{stages}",
            lambda config=config: paged_attention_mixed(*case, **options, decode=config),
        )
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    # An odd number of stages above three loads one more tile ahead: half of them go to the table lookup.
    for per_processor, tile, warps, stages in (
        (1, 64, 4, 7), (2, 64, 4, 3), (2, 64, 4, 5), (3, 64, 4, 3), (3, 64, 4, 5), (2, 128, 8, 3),
        (1, 128, 8, 5), (3, 32, 4, 5), (4, 32, 4, 5), (4, 64, 4, 2),
    ):  # fmt: skip
        num_streams = per_processor * processors // KV_HEADS
        config = StreamConfig(num_streams=num_streams, tile=tile, num_warps=warps, num_stages=stages)
        schedule = schedule_of(case, config)
        # The kernel is called for itself: the launcher would choose by the size of the table.
        measure(
            f"streams x{num_streams}, tile {tile}, w{warps}, s{stages}", lambda s=schedule: streams(case, s)
        )
    return results


def streams(case: Case, schedule: AttentionSchedule) -> Tensor:
    out = torch.empty_like(case[0])
    paged_attention_streams(*case, out, scale=HEAD_DIM**-0.5, schedule=schedule)
    return out


def mixed(case: Case, schedule: AttentionSchedule) -> Tensor:
    return paged_attention_mixed(*case, **MIXED_OPTIONS, schedule=schedule)


def show(title: str, floor_us: float, results: dict[str, tuple[float, float]]) -> None:
    print(f"{title}: floor {floor_us:.1f} us")
    for name, (us, error) in sorted(results.items(), key=lambda item: item[1][0]):
        mark = "" if error < TOLERANCE else "  WRONG"
        print(f"  {us:8.1f} us  {floor_us / us:5.0%}  error {error:.1e}{mark}  {name}", flush=True)


def main() -> None:
    torch.manual_seed(0)
    uneven = torch.randint(4096, 12289, (16,)).tolist()
    chat = torch.randint(64, 1150, (256,)).tolist()
    for title, heads, lengths in (
        ("decode 1 x 32768", 32, [32768]),
        ("decode 16 x 8192", 32, [8192] * 16),
        ("decode 16 x 4096..12288", 32, uneven),
        ("decode 64 x 64..1150", 16, chat[:64]),
        ("decode 256 x 64..1150", 16, chat),
        ("decode 128 x 300", 16, [300] * 128),
    ):
        case = make([1] * len(lengths), lengths, heads)
        floor_us = sum(lengths) * 4 * KV_HEADS * HEAD_DIM / READ_BYTES_PER_S * 1e6
        show(title, floor_us, decode_variants(case))
        print(f"  {graph_us(lambda case=case: schedule_of(case, None)):8.1f} us  the schedule of a step")
    for title, query_lens, lengths in (
        ("mixed 255 x 600 + 1 x 256", [1] * 255 + [256], [600] * 255 + [256]),
        ("mixed 2 x 600 + 1 x 510", [1, 1, 510], [600, 600, 510]),
        ("prefill 1 x 256 of 4096", [256], [4096]),
        ("prefill 1 x 256 of 256", [256], [256]),
        ("prefill 4 x 2048", [2048] * 4, [2048] * 4),
        ("prefill 200 x 10", [10] * 200, [10] * 200),
    ):
        case = make(query_lens, lengths, 32, rows=1024)
        schedule = schedule_of(case, None)
        truth = paged_attention(*case, **MIXED_OPTIONS).double()
        error = float((mixed(case, schedule).double() - truth).norm() / truth.norm())
        mark = "" if error < TOLERANCE else "  WRONG"
        us = graph_us(lambda case=case, schedule=schedule: mixed(case, schedule))
        print(f"{title}, 1,024 rows: {us:.1f} us, error {error:.1e}{mark}", flush=True)


if __name__ == "__main__":
    main()
