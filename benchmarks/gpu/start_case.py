"""From the command to the first request that can be served: `quire serve` with an empty kernel cache, and again.

Cold means that every cache of compiled kernels is an empty directory; files that the operating system has read before
may still be in its memory. A request is made afterwards, as proof.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.client import Load, run_clients
from benchmarks.gpu.model import Model
from benchmarks.gpu.result import Row
from benchmarks.gpu.stack import command_line
from benchmarks.gpu.workload import Ask

_KERNEL_CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "XDG_CACHE_HOME")
_STOP_TIMEOUT_S = 60.0


class StartCases:
    """The cases of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def start(self, title: str) -> list[Row]:
        """Cold, then warm."""
        with tempfile.TemporaryDirectory() as folder:
            self._model.write(Path(folder, "model"))
            return [
                Row(case=title, load=load, value=self._start_s(Path(folder)), unit="s")
                for load in ("cold", "warm")
            ]

    def _start_s(self, folder: Path) -> float:
        flags = command_line(self._model.flags(folder / "model") | self._model.scheduler_flags)
        caches = {name: str(folder / name.lower()) for name in _KERNEL_CACHES}
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "quire.cli.main", "serve", "--grpc-port", "0", "--port", "0", *flags],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | caches,
        )
        try:
            address = _ready_address(process)
            seconds = time.perf_counter() - start
            ask = Ask(prompt_token_ids=[1, 2, 3], num_out=2, seed=0)
            (trace,) = run_clients(address, [ask], Load(num_streams=1), num_processes=1)
            assert sum(trace.counts) == ask.num_out, "the first request brought another number of tokens"
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_STOP_TIMEOUT_S)
        return seconds


def _ready_address(process: "subprocess.Popen[str]") -> str:
    """Reads until the launcher says that it is ready; the front door's address."""
    assert process.stdout is not None, "stdout is a pipe"
    for line in process.stdout:
        if line.startswith("Quire is ready"):
            return line.partition(" on grpc ")[2].split()[0]
    raise RuntimeError(f"quire serve ended with status {process.wait()} before it was ready")
