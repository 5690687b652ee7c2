"""Processes that compile kernels for this one: threads that do so wait for the interpreter, in which much of the work is done.

They fill the cache on disk, from which the worker loads. Importing this takes no time, so that they can be started first of
all and import what they need while the worker does. Without them, or when they fail, a start takes longer and nothing else.
"""

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Protocol

_MODULE = "quire_kernels.compiler_process"
_MAX_PROCESSES = 12
"""The longest kernels take a tenth of all: more would wait for these."""

_MIN_CORES = 4
"""Fewer are taken by what starts at the same time."""

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where a container says how many microseconds of all cores it has in how many: "max", or two numbers."""

_ANSWER_S = 90
"""Longer than a process gives itself for a kernel, with what it imports before the first."""

_END_S = 1.0

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Only a process of one thread may be forked."""


class Kernel(Protocol):
    """What is sent of a binary."""

    @property
    def request(self) -> dict[str, Any]:
        """See `quire_kernels.compiler_process`."""
        ...


class CompilerPool:
    """So many processes, which may still be on the way. Threads may share it."""

    def __init__(self, num_processes: int) -> None:
        pairs = [socket.socketpair() for _ in range(num_processes)]
        theirs = [end.fileno() for _, end in pairs]
        self._free: SimpleQueue[socket.socket] = SimpleQueue()
        self._sockets = [end for end, _ in pairs]
        self._has_answered = False
        self.num_processes = num_processes
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _MODULE, *map(str, theirs)],
                env={**os.environ, **_ONE_THREAD, "CUDA_VISIBLE_DEVICES": ""},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=theirs,
                start_new_session=True,  # who interrupts the worker from a terminal does not interrupt them
            )
        finally:
            for _, end in pairs:
                end.close()
        for end in self._sockets:
            end.settimeout(_ANSWER_S)
            self._free.put(end)

    def compile(self, kernel: Kernel) -> str | None:
        """Returns when the binary is in the cache, or says why it is not. Waits for no process that is at another one."""
        try:
            process = self._free.get_nowait()
        except Empty:
            return "no compiler process is left"
        try:
            process.sendall(json.dumps(kernel.request).encode() + b"\n")
            answer = _line_from(process)
        except OSError as error:
            process.close()
            return f"a compiler process ended: {error or type(error).__name__}"
        self._free.put(process)
        self._has_answered = True
        return json.loads(answer)["error"]

    def close(self) -> None:
        """Ends them, one that is at a kernel after it; may be called again."""
        for end in self._sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # frees a thread that waits for it
            end.close()
        if self._has_answered:  # so they have been forked, and are to be waited for by who forked them
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_END_S)
        self._process.kill()
        self._process.wait()


def compiler_pool(device: str) -> CompilerPool | None:
    """As many as this machine has cores for; none where no GPU or no Triton can be seen, or where the worker is to use none."""
    num_cores = _num_cores()
    has_gpu = Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    if device == "cpu" or not has_gpu or num_cores < _MIN_CORES or find_spec("triton") is None:
        return None
    try:
        return CompilerPool(min(_MAX_PROCESSES, num_cores))
    except OSError:
        return None  # threads will do


def _num_cores() -> int:
    """As many as this process may use, and as its container's share of time comes to."""
    num_cores = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        return num_cores
    return num_cores if quota == "max" else max(1, min(num_cores, int(quota) // int(period)))


def _line_from(connection: socket.socket) -> bytes:
    received = bytearray()
    while not received.endswith(b"\n"):
        more = connection.recv(1 << 16)
        if not more:
            raise ConnectionResetError("nothing came back")
        received += more
    return bytes(received)
