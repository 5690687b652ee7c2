"""A whole stack as `quire serve` starts it, for the tests of this folder."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

STOP_WITHIN_S = 60


@dataclass(frozen=True, slots=True)
class Served:
    """A running stack and the address of its front door."""

    address: str
    process: "subprocess.Popen[str]"


@contextlib.contextmanager
def running_stack(
    *flags: str, environment: Mapping[str, str] | None = None, **popen: Any
) -> Iterator[Served]:
    """`quire serve` on free ports; it must exit 0 on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "quire.cli.main", "serve", "--grpc-port", "0", *flags],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
        **popen,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.match(r"Quire is ready: .* on grpc (127\.0\.0\.1:\d+) ", line)
        assert match, f"no ready line but {line!r}"
        yield Served(match[1], process)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(STOP_WITHIN_S)
        process.stdout.close()
    assert status == 0
