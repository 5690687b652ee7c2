"""Workloads on one GPU, on the worker alone and through the whole stack, each figure beside its floor.

    python -m benchmarks.gpu CASE [CASE...]     (see `python -m benchmarks.gpu --help` for the cases)

A clone that is not installed works too: the packages are found beside this one, here and in every process started.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

_PACKAGES = [
    str(ROOT / each)
    for each in (".", "services/tokenizer", "services/scheduler", "services/worker", "kernels")
]
sys.path[:0] = [each for each in _PACKAGES if each not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join([*_PACKAGES, os.environ.get("PYTHONPATH", "")])
