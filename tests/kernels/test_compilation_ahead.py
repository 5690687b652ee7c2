"""What is compiled before the first step is all that later steps launch, on a machine that has no GPU."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.kernels.double_process import printed_by
from tests.kernels.test_compilation import BY_PAGES, BY_ROWS, KERNELS

OF_PENALTIES = {"_reset_rows_kernel", "_copy_rows_kernel"}

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return _printed_by("rehearse_only", "90", cache=tmp_path_factory.mktemp("cache"))


def test_a_rehearsal_finds_every_kernel_of_a_step(rehearsal: dict[str, list[str]]) -> None:
    assert set(rehearsal["rehearsed"]) == KERNELS | BY_PAGES | BY_ROWS | OF_PENALTIES


def test_steps_that_come_later_need_no_other_binary(rehearsal: dict[str, list[str]]) -> None:
    assert rehearsal["missed"] == []


def test_what_was_compiled_is_not_compiled_again(rehearsal: dict[str, list[str]]) -> None:
    assert rehearsal["compiled"]
    left = Counter(rehearsal["rehearsed"]) - Counter(rehearsal["compiled"])
    assert Counter(rehearsal["again"]) == left


def test_what_other_processes_compile_is_loaded_from_disk(tmp_path: Path) -> None:
    found = _printed_by("compile_elsewhere", "90", cache=tmp_path)
    assert found["loaded before"] == found["here"] == 0
    assert found["here, alone"] == found["wanted"] - found["half"] > 0
    assert found["loaded after"] == found["wanted"]


def test_keys_on_disk_do_not_depend_on_what_was_hashed_first(tmp_path: Path) -> None:
    first, *others = [_printed_by("hash_only", "90", str(seed), cache=tmp_path) for seed in range(3)]
    assert first
    assert all(keys == first for keys in others)


def _printed_by(double: str, *arguments: str, cache: Path) -> dict[str, Any]:
    return json.loads(printed_by(double, *arguments, cache=cache))
