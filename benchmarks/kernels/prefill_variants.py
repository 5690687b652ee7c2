"""Prefill attention over candidate launch settings: checked against the reference, then timed in one graph of 10 launches.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/prefill_variants.py``. Tables are padded to 1,024 rows, as in
a captured step. "no splits" leaves the keys of few tiles to few programs; "x2" cuts them for twice as many programs as
run at once. What wins goes, by hand, into `quire_kernels/attention/tuning.py`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import torch
from attention_variants import HEAD_DIM, KV_HEADS, TOLERANCE, Case, graph_us, make
from quire_kernels.attention.paged import schedule_attention
from quire_kernels.attention.prefill import paged_attention_prefill
from quire_kernels.attention.reference import paged_attention
from quire_kernels.attention.schedule import AttentionSchedule
from quire_kernels.attention.tuning import PrefillConfig
from torch import Tensor

MATRIX_FLOP_PER_S = 785e12  # bfloat16 matrix product measured on one H200
HEADS, ROWS, LAUNCHES, COMPILERS = 32, 1024, 10, 14
PROMPTS = {
    # title: (query_lens, seq_lens)
    "4 x 2048": ([2048] * 4, [2048] * 4),
    "256/4096": ([256], [4096]),
    "256/256": ([256], [256]),
    "1024/16k": ([1024], [16384]),
    "200 x 10": ([10] * 200, [10] * 200),
}
FIRST = next(iter(PROMPTS))


def candidates(processors: int) -> Iterator[tuple[str, PrefillConfig]]:
    for rows, tile, stages, one_loop, ahead in product(
        (64, 128), (64, 128), (2, 3, 4, 5), (False, True), (False, True)
    ):
        # Without the blocks ahead, half of the stages above two go to the table lookup.
        depth = stages if ahead else (stages + 1) // 2 + 1
        if (stages == 4 and not ahead) or (rows + 2 * tile * depth) * 2 * HEAD_DIM > 227 << 10:
            continue
        warps = rows // 16
        config = PrefillConfig(
            rows=rows, tile=tile, num_warps=warps, num_stages=stages, one_loop=one_loop, blocks_ahead=ahead,
            num_programs=8 // warps * processors // KV_HEADS,
        )  # fmt: skip
        title = f"{rows:3} x {tile:3} s{stages}{' one loop' * one_loop}{' ahead' * ahead}"
        yield title, config
        if stages == 3 and not one_loop and not ahead:
            yield f"{title} no splits", replace(config, num_programs=1)
            yield f"{title} x2", replace(config, num_programs=2 * config.num_programs)
    small = PrefillConfig(
        rows=64,
        tile=64,
        num_warps=4,
        num_stages=2,
        num_programs=3 * processors // KV_HEADS,
        max_registers=168,
    )  # three programs a multiprocessor
    yield " 64 x  64 s2, 168 registers", small
    yield " 64 x  32 s3, 168 registers ahead", replace(small, tile=32, num_stages=3, blocks_ahead=True)


def schedule_of(case: Case, config: PrefillConfig) -> AttentionSchedule:
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
        prefill=config,
    )


def attend(case: Case, schedule: AttentionSchedule, out: Tensor) -> Tensor:
    paged_attention_prefill(*case, out, scale=HEAD_DIM**-0.5, schedule=schedule)
    return out


def measure(case: Case, configs: dict[str, PrefillConfig]) -> dict[str, tuple[float, float]]:
    """Return microseconds and error by candidate; candidates that do not compile are left out."""
    options = {"scale": HEAD_DIM**-0.5, "sliding_window": None, "max_query_len": 8192, "max_seq_len": 32768}
    truth = paged_attention(*case, **options).double()

    def compiled(title: str) -> AttentionSchedule | None:
        schedule = schedule_of(case, configs[title])
        try:
            attend(case, schedule, torch.empty_like(case[0]))
        except Exception as error:  # noqa: BLE001 — a candidate may need more than the chip has
            print(f"  {title}: {type(error).__name__} {str(error)[:80]}", flush=True)
            return None
        return schedule

    with ThreadPoolExecutor(COMPILERS) as pool:
        schedules = dict(zip(configs, pool.map(compiled, configs), strict=True))
    results = {}
    for title, schedule in schedules.items():
        if schedule is None:
            continue
        out = torch.full_like(case[0], float("nan"))
        attend(case, schedule, out)
        # The second launch finds the arrivals as the first one left them.
        error = float((attend(case, schedule, out).double() - truth).norm() / truth.norm())
        us = graph_us(lambda schedule=schedule, out=out: attend(case, schedule, out), LAUNCHES)
        results[title] = (us, error)
    return results


def floor_us(query_lens: list[int], seq_lens: list[int]) -> float:
    pairs = sum(
        query_len * (seq_len - query_len / 2) for query_len, seq_len in zip(query_lens, seq_lens, strict=True)
    )
    return pairs * 4 * HEADS * HEAD_DIM / MATRIX_FLOP_PER_S * 1e6


def main() -> None:
    torch.manual_seed(0)
    configs = dict(candidates(torch.cuda.get_device_properties(0).multi_processor_count))
    times: dict[str, dict[str, tuple[float, float]]] = {}
    for prompts, lengths in PROMPTS.items():
        case = make(*lengths, HEADS, rows=ROWS)
        times[prompts] = measure(case, configs)
        schedule_us = graph_us(lambda case=case: schedule_of(case, next(iter(configs.values()))))
        print(f"{prompts}: the schedule of a step takes {schedule_us:.1f} us", flush=True)
    print(f"{torch.cuda.get_device_name()}: microseconds, best of {FIRST} first")
    print(f"{'rows x keys':34}" + "".join(f"{prompts:>10}" for prompts in PROMPTS))
    print(f"{'floor':34}" + "".join(f"{floor_us(*lengths):10.1f}" for lengths in PROMPTS.values()))
    first = times[FIRST]
    for title in sorted(first, key=lambda title: first[title][0]):
        line = f"{title:34}"
        for results in times.values():
            us, error = results.get(title, (float("nan"), 0.0))
            line += f"{us:10.1f}" if error < TOLERANCE else f"{'WRONG':>10}"
        print(line)


if __name__ == "__main__":
    main()
