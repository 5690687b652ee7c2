"""The command: `python -m benchmarks.gpu CASE [CASE...]`."""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.case import CASES, GROUPS
from benchmarks.gpu.part import Device, Options, probe, run_parts
from benchmarks.gpu.result import RESULTS, SHARES, Row, commit, merge_rows, table
from benchmarks.gpu.workload import STREAMS

_MOST_PROCESSES = 6
"""Of tokenizers, and of clients, by default. Four of each filled their cores at 42,500 tokens/s on 16 slow ones, of which
half were idle; with more, two or three cores are left for scheduler and worker."""


def main(argv: list[str]) -> int:
    """Runs the cases asked for, merges their rows into the results and prints them last."""
    arguments = _parse(argv)
    device = probe()
    name = f"{device.name}-tiny" if arguments.tiny else device.name
    file = arguments.out or RESULTS / f"{name}.json"
    options = Options(
        seed=arguments.seed,
        repeats=arguments.repeats,
        tiny=arguments.tiny,
        num_tokenizers=arguments.tokenizers,
        num_clients=arguments.clients,
        streams=tuple(arguments.streams),
    )
    tree = arguments.commit or commit()
    rows, failed = [replace(row, commit=tree) for row in _device_rows(device)], []
    for case, brought in run_parts(_names(arguments.cases), device, options):
        if brought is None:
            failed.append(case)
            continue
        for row in brought:
            print(f"  {row.case}, {row.load}: {row.value:,.4g} {row.unit}", flush=True)
        rows += [replace(row, commit=tree) for row in brought]
        merge_rows(file, rows)  # what a command that is cut short has measured is kept
    measured = {row.case for row in rows}
    rows = [row for row in merge_rows(file, rows) if _measured_case(row) in measured]
    print(f"\n{device.name}, commit {tree}, seed {options.seed}, written to {file}\n\n{table(rows)}")
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measured_case(row: Row) -> str:
    """The case that a row is of, or that a share was computed for."""
    share = next((share for share in SHARES if row.case.endswith(share)), "")
    return row.case.removesuffix(share)


def _device_rows(device: Device) -> list[Row]:
    rates = device.rates
    return [
        Row(case="Streaming read", load="best of a few kernels", value=rates.read_bytes_per_s / 1e12, unit="TB/s"),
        Row(case="Matrix product, bfloat16", load="best of a few shapes",
            value=rates.matrix_flop_per_s / 1e12, unit="TFLOP/s"),
    ]  # fmt: skip


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measures Quire on one GPU.",
        epilog=f"Cases: {', '.join(CASES)}. Groups: "
        + "; ".join(f"{group} = {' '.join(names)}" for group, names in GROUPS.items()),
    )
    parser.add_argument(
        "cases", nargs="+", choices=[*CASES, *GROUPS], metavar="CASE", help="a case or a group of them"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of lengths and prompts (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions; the median counts (default: 3)")
    parser.add_argument(
        "--tiny", action="store_true", help="tiny models and workloads, to try the suite anywhere"
    )
    share = max(1, min(_MOST_PROCESSES, (os.cpu_count() or 1) * 3 // 8))
    parser.add_argument(
        "--tokenizers", type=int, default=share, help=f"tokenizer processes (default: {share})"
    )
    parser.add_argument("--clients", type=int, default=share, help=f"client processes (default: {share})")
    parser.add_argument(
        "--streams", nargs="+", type=int, default=STREAMS, metavar="N",
        help=f"closed loops of B and C (default: {' '.join(map(str, STREAMS))})",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="results file (default: benchmarks/results/<gpu>.json)")
    parser.add_argument("--commit", help="what to call the tree, where it is a copy without its repository")
    arguments = parser.parse_args(argv)
    if min(arguments.streams) < 1:
        parser.error(f"argument --streams: {min(arguments.streams)} must be at least 1")
    return arguments


def _names(asked: list[str]) -> list[str]:
    """Cases in the order of the table, which keeps those of one part together."""
    names = {name for each in asked for name in GROUPS.get(each, (each,))}
    return sorted(names, key=list(CASES).index)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
