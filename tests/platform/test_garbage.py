"""How processes that serve are told to collect garbage: asked as each of them ends, by Python itself."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.tokenizer.stack import scheduler

_ASKED_AT_EXIT = """
import atexit, gc, runpy, sys
atexit.register(lambda: print("garbage", gc.get_freeze_count() > 0, *gc.get_threshold(), flush=True))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
_SETTLED = "garbage True 10000 10 10\n"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with scheduler() as running:
        yield running.address


def test_a_scheduler_that_serves_collects_seldom() -> None:
    assert _said_at_exit("quire_scheduler", "--grpc-port", "0") == _SETTLED


def test_a_tokenizer_that_serves_collects_seldom(address: str) -> None:
    flags = ("--grpc-port", "0", "--port", "0", "--scheduler", address)
    assert _said_at_exit("quire_tokenizer", *flags) == _SETTLED


def test_a_worker_that_serves_collects_seldom(address: str) -> None:
    flags = ("--scheduler", address, "--max-num-seqs", "2", "--max-model-len", "64")
    assert _said_at_exit("quire_worker", *flags) == _SETTLED


def _said_at_exit(module: str, *flags: str) -> str:
    process = subprocess.Popen(
        [sys.executable, "-c", _ASKED_AT_EXIT, module, *flags], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline().startswith("READY ")
        process.terminate()
        return process.communicate(timeout=60)[0]
    finally:
        process.kill()
        process.wait()


def test_imports_are_not_looked_at_again() -> None:
    program = (
        "import gc; from quire import garbage\n"
        "with garbage.paused(): kept = [[] for _ in range(1000)]; assert not gc.isenabled()\n"
        "assert gc.isenabled() and gc.get_freeze_count() > 1000"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
