"""Processes that compile for a worker end with it, and cost it nothing but time when they fail."""

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
from quire_kernels.compilation import NotedKernel, compiled_beside
from quire_worker import compiler_pool as module
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


@pytest.mark.parametrize(
    ("device", "file", "num_cores", "quota", "num_processes"),
    [
        ("auto", "/dev/nvidiactl", 64, "max 100000", 12),
        ("cuda", "/dev/dxg", 64, None, 12),
        ("auto", "/dev/nvidiactl", 5, None, 5),
        ("auto", "/dev/nvidiactl", 64, "450000 100000", 4),
        ("auto", "/dev/nvidiactl", 64, "250000 100000", None),
        ("auto", "/dev/nvidiactl", 3, None, None),
        ("auto", "/dev/none", 64, None, None),
        ("cpu", "/dev/nvidiactl", 64, None, None),
    ],
)
def test_there_are_as_many_as_cores_where_a_worker_has_a_gpu(
    device: str,
    file: str,
    num_cores: int,
    quota: str | None,
    num_processes: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(module, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(num_cores)))
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == file)
    monkeypatch.setattr(module, "CompilerPool", lambda number: number)
    assert compiler_pool(device) == num_processes
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert compiler_pool(device) is None


def test_a_start_that_fails_waits_for_no_kernel_elsewhere() -> None:
    class Slow:
        """Compiles until it is closed."""

        def __init__(self) -> None:
            self.begun, self.closed = Event(), Event()

        def compile(self, kernel: NotedKernel) -> str | None:
            self.begun.set()
            assert self.closed.wait(_END_S)
            return "closed"

        def close(self) -> None:
            self.closed.set()

    class Missing(NotedKernel):
        """Not in the cache."""

        def load(self) -> bool:
            return False

        def compile(self) -> None:
            compiled.append(self)

    compiled: list[NotedKernel] = []
    elsewhere = Slow()
    kernels = [Missing(function=None, specialization="") for _ in range(3)]

    def start() -> None:
        with compiled_beside(kernels, 2, lambda: None, elsewhere):
            assert elsewhere.begun.wait(_END_S)
            raise KeyError

    with pytest.raises(KeyError):
        start()
    assert elsewhere.closed.is_set()
    assert not compiled


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
