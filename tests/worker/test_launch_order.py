"""What attention is promised of the launches before it, on a machine that has no GPU."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")


def test_an_ordinary_launch_lies_between_the_tables_of_a_step_and_its_layers() -> None:
    """Kernels of ours may start before the ones ahead of them have ended, the embedding of torch may not: what is written
    before it is settled for all that comes after it, and so it must come first in the forward pass.
    """
    finished = subprocess.run(
        [sys.executable, "-m", "tests.doubles.launch_order", "90"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    orders: dict[str, list[str]] = json.loads(finished.stdout)
    assert orders
    for name, launched in orders.items():
        before = ["_prepare_step_kernel", *["_schedule_prefill_rows_kernel"] * (name == "mixed"), "embedding"]
        assert launched[: len(before) + 1] == [*before, "_rms_norm_rows_kernel"]
        kind = "prefill_hopper" if name == "mixed" else "decode"
        assert any(each.startswith(f"_paged_attention_{kind}") for each in launched)
        assert not any(each.startswith(("_prepare", "_schedule")) for each in launched[len(before) :])
    for num_rows in (128, 192):  # those between products are made by the products
        norms = orders[f"decode {num_rows}"].count("_rms_norm_rows_kernel")
        assert norms == 2, "the first and the last of a step"
