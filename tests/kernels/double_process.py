"""A double that compiles in a process of its own: what it makes must not be in the caches of the tests' process."""

import os
import subprocess
import sys
from pathlib import Path


def printed_by(double: str, *arguments: str, cache: Path) -> str:
    """What `tests.doubles.<double>` prints, with an empty cache of kernels in `cache`; fails with what it says if it fails."""
    finished = subprocess.run(
        [sys.executable, "-m", f"tests.doubles.{double}", *arguments],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout
