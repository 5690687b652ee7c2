"""benchmarks/load: each load generator is run once against a live stack, and every answer must be a good one."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ship.served import Served, running_stack

LOAD = Path(__file__).parents[2] / "benchmarks" / "load"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "8") as running:
        yield running


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


@pytest.mark.skipif(not shutil.which("ab"), reason="ab is not installed (Debian: apache2-utils)")
def test_ab_gets_every_answer(served: Served) -> None:
    body = str(LOAD / "completion.json")
    url = f"{served.url}/v1/completions"
    shown = _run("ab", "-k", "-l", "-n", "40", "-c", "8", "-p", body, "-T", "application/json", url)
    assert re.search(r"Complete requests:\s+40\n", shown)
    assert re.search(r"Failed requests:\s+0\n", shown)
    assert "Non-2xx responses" not in shown


@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed (Debian: wrk)")
def test_wrk_streams_every_answer_to_its_end(served: Served) -> None:
    shown = _run("wrk", "-t1", "-c8", "-d3s", "-s", str(LOAD / "completion.lua"), served.url)
    counts = re.search(r"complete answers: (\d+), broken answers: (\d+), socket errors: (\d+)", shown)
    assert counts, shown
    assert int(counts[1]) >= 8
    assert (counts[2], counts[3]) == ("0", "0")


@pytest.mark.skipif(not find_spec("locust"), reason="locust is not installed")
def test_locust_users_read_every_token(served: Served) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(LOAD / "locustfile.py"), "--host", served.url]
    flags = ["--headless", "-u", "4", "-r", "4", "-t", "4s", "--only-summary", "--stop-timeout", "20"]
    # Locust exits with 1 when a request failed.
    shown = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=100, check=False)
    print(shown.stdout, shown.stderr)
    assert shown.returncode == 0, shown.stdout
    total = re.search(r"Aggregated\s+(\d+)\s+(\d+)\(0.00%\)", shown.stderr + shown.stdout)
    assert total and int(total[1]) >= 4, shown.stderr
    assert "TTFT" in shown.stderr + shown.stdout
