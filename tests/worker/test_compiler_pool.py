"""Processes that compile for a worker end with it, and cost it nothing but time when they fail."""

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
from quire_worker.compiler_pool import CompilerPool, compiler_pool

pytest.importorskip("triton")

_END_S = 30.0
_TARGET = {"backend": "cuda", "arch": 90, "warp_size": 32}


class UnknownKernel:
    """Of a function that nobody has."""

    @property
    def request(self) -> dict[str, Any]:
        return {"target": _TARGET, "module": "quire_kernels", "function": "none", "specialization": "{}"}


@pytest.fixture
def compilers() -> Generator[CompilerPool]:
    pool = CompilerPool(2)
    yield pool
    pool.close()


def test_a_kernel_that_fails_leaves_its_process_for_the_next(compilers: CompilerPool) -> None:
    for _ in range(3):
        assert "none" in (compilers.compile(UnknownKernel()) or "")


def test_processes_that_are_gone_are_named_and_not_asked_again(compilers: CompilerPool) -> None:
    compilers._process.kill()  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        assert "ended" in (compilers.compile(UnknownKernel()) or "")
    assert compilers.compile(UnknownKernel()) == "no compiler process is left"


def test_closing_waits_for_no_import() -> None:
    pool = CompilerPool(2)
    before = monotonic()
    pool.close()
    assert monotonic() - before < 1


def test_processes_end_with_the_one_that_started_them() -> None:
    script = """
import os
from quire_worker.compiler_pool import CompilerPool
from tests.worker.test_compiler_pool import UnknownKernel
pool = CompilerPool(2)
pool.compile(UnknownKernel())
print(pool._process.pid, flush=True)
os._exit(0)
"""
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    group = int(finished.stdout)
    deadline = monotonic() + _END_S
    while _in_session(group):
        assert monotonic() < deadline
        sleep(0.05)


def test_a_worker_without_a_gpu_has_none() -> None:
    assert compiler_pool("cpu") is None


def _in_session(session: int) -> list[str]:
    """Processes that run; those that ended and that nobody has asked after do not."""
    running: list[str] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[3] == str(session) and fields[0] != "Z":
            running.append(stat.parent.name)
    return running
