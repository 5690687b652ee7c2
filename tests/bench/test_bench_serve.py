"""`quire bench serve` against a live stack, over each of its doors."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ship.served import Served, running_stack

QUIRE = [sys.executable, "-m", "quire.cli.main"]
LOAD = [
    "--num-prompts",
    "12",
    "--random-input-len",
    "24",
    "--random-output-len",
    "8",
    "--random-vocab-size",
    "1000",
    "--ignore-eos",
]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "8") as running:
        yield running


def _bench(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [*QUIRE, "bench", "serve", *LOAD, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def _result(folder: Path, *flags: str) -> dict[str, Any]:
    shown = _bench("--save-result", "--result-dir", str(folder), "--result-filename", "r.json", *flags)
    assert shown.returncode == 0, shown.stderr
    return json.loads((folder / "r.json").read_text())


@pytest.mark.parametrize("backend", ["grpc", "openai", "openai-chat"])
def test_every_door_brings_every_token_of_every_request(served: Served, tmp_path: Path, backend: str) -> None:
    where = ["--address", served.address] if backend == "grpc" else ["--base-url", served.url]
    result = _result(tmp_path, *where, "--backend", backend, "--max-concurrency", "3", "--save-detailed")
    assert (result["backend"], result["model_id"]) == (backend, "quire-shakespeare")
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (12, 0, 96)
    assert result["output_lens"] == [8] * 12
    assert result["max_concurrent_requests"] == 3
    if backend != "openai-chat":
        assert result["total_input_tokens"] == 12 * 24
    assert 0 < result["median_ttft_ms"] <= result["p99_ttft_ms"]
    assert 0 < result["mean_tpot_ms"] < 1000 * result["duration"] / 7
    assert result["output_throughput"] == pytest.approx(96 / result["duration"])


def test_a_sweep_of_rates_is_a_table_a_file_and_a_plot(served: Served, tmp_path: Path) -> None:
    shown = _bench(
        *("--address", served.address, "--request-rate", "40", "inf", "--plot", str(tmp_path / "plot.png")),
        *("--save-result", "--result-dir", str(tmp_path), "--metadata", "gpu=none"),
    )
    assert shown.returncode == 0, shown.stderr
    assert "40.0 req/s" in shown.stdout and "inf req/s" in shown.stdout and "TTFT p99" in shown.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    (file,) = tmp_path.glob("grpc-40-infqps-quire-shakespeare-*.json")
    document = json.loads(file.read_text())
    assert document["gpu"] == "none"
    slow, fast = document["runs"]
    # Twelve requests with gaps of 25 ms on average take longer than all at once.
    assert (slow["request_rate"], fast["request_rate"]) == (40.0, "inf")
    assert slow["completed"] == fast["completed"] == 12


def test_a_server_that_refuses_is_named_before_the_load(served: Served) -> None:
    refused = _bench("--base-url", served.url, "--model", "other")
    assert refused.returncode == 1
    assert "the first request failed: HTTP 404" in refused.stderr
    assert "model='other'" in refused.stderr


def test_nobody_there_is_said_so() -> None:
    refused = _bench("--base-url", "http://127.0.0.1:9")
    assert refused.returncode == 1
    assert "no answer from 127.0.0.1:9" in refused.stderr
