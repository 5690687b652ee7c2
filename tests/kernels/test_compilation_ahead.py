"""What is compiled before the first step is all that later steps launch, on a machine that has no GPU."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.kernels.test_compilation import BY_PAGES, BY_ROWS, KERNELS

OF_PENALTIES = {"_reset_rows_kernel", "_copy_rows_kernel"}

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    cache: Path = tmp_path_factory.mktemp("cache")
    finished = subprocess.run(
        [sys.executable, "-m", "tests.doubles.rehearse_only", "90"],
        env={**os.environ, "TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


def test_a_rehearsal_finds_every_kernel_of_a_step(rehearsal: dict[str, list[str]]) -> None:
    assert set(rehearsal["rehearsed"]) == KERNELS | BY_PAGES | BY_ROWS | OF_PENALTIES


def test_steps_that_come_later_need_no_other_binary(rehearsal: dict[str, list[str]]) -> None:
    assert rehearsal["missed"] == []


def test_what_was_compiled_is_not_compiled_again(rehearsal: dict[str, list[str]]) -> None:
    assert rehearsal["compiled"]
    left = Counter(rehearsal["rehearsed"]) - Counter(rehearsal["compiled"])
    assert Counter(rehearsal["again"]) == left


def test_keys_on_disk_do_not_depend_on_what_was_hashed_first() -> None:
    first, *others = [_keys(seed) for seed in range(3)]
    assert first
    assert all(keys == first for keys in others)


def _keys(seed: int) -> dict[str, str]:
    finished = subprocess.run(
        [sys.executable, "-m", "tests.doubles.hash_only", "90", str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)
