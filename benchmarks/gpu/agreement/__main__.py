"""The command: `python -m benchmarks.gpu.agreement [CHECK...]`."""

import sys
import time

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.gpu.agreement.conservation import check_conservation
from benchmarks.gpu.agreement.greedy import check_bfloat16, check_float32
from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.rounded_cache import check_fp8
from benchmarks.gpu.agreement.sampler import check_sampler
from benchmarks.gpu.agreement.variant import check_device, check_graph
from benchmarks.gpu.probe import device_name

CHECKS = {
    "float32": check_float32,
    "bfloat16": check_bfloat16,
    "graph": check_graph,
    "fp8": check_fp8,
    "device": check_device,
    "sampler": check_sampler,
    "conservation": check_conservation,
}


def main(names: list[str]) -> int:
    """Runs the checks named, or all; 1 when one failed."""
    unknown = [name for name in names if name not in CHECKS]
    if unknown:
        sys.exit(f"unknown checks {', '.join(unknown)}: must be of {', '.join(CHECKS)}")
    disable_progress_bar()
    torch.backends.cuda.matmul.allow_tf32 = False
    outcomes: list[Outcome] = []
    for name in names or CHECKS:
        start = time.perf_counter()
        for outcome in CHECKS[name]():
            outcomes.append(outcome)
            print(outcome, flush=True)
        print(f"        {name} took {time.perf_counter() - start:.0f} s", flush=True)
    num_failed = sum(outcome.passed is False for outcome in outcomes)
    print(f"\n{device_name()}: {num_failed} of {len(outcomes)} checks failed")
    return 1 if num_failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
