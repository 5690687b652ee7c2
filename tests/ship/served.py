"""A whole stack as `quire serve` starts it, for the tests of this folder."""

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

QUIRE = [sys.executable, "-m", "quire.cli.main"]
SERVE = [*QUIRE, "serve"]
STOP_WITHIN_S = 60


@dataclass(frozen=True, slots=True)
class Served:
    """A running stack and the addresses of its front door."""

    address: str
    process: "subprocess.Popen[str]"
    url: str = ""
    """Of the HTTP API; empty without one."""
    scheduler: str = ""
    """Address of the scheduler."""


@contextlib.contextmanager
def running_stack(
    *flags: str, command: Sequence[str] = SERVE, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Served]:
    """`quire serve`, or another command that serves, on free ports; it must exit 0 on SIGTERM."""
    process = subprocess.Popen(
        [*command, "--grpc-port", "0", "--port", "0", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
        cwd=cwd,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.match(r"Quire is ready: .* on grpc (127\.0\.0\.1:\d+) ", line)
        http = re.search(r"https?://127\.0\.0\.1:\d+", line)
        assert match, f"no ready line but {line!r}"
        scheduler = re.search(r"scheduler (127\.0\.0\.1:\d+)", line)
        assert scheduler, line
        yield Served(match[1], process, http[0] if http else "", scheduler[1])
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_WITHIN_S)
        process.stdout.close()
    assert status == 0
