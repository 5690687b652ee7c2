"""Settings of the whole suite.

With QUIRE_ALLOW_NO_SKIPS set, a skipped test fails the run: continuous integration installs what every test needs.
"""

import os

import pytest
import torch

# Several torch processes on few cores starve each other when idle OpenMP threads spin.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Lets Triton kernels run where there is no GPU: the interpreter takes the compiler's place in all that is defined from here
# on, Triton's own functions among them. Whoever imports a library that uses Triton must come later.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Fails the run for skips where none are allowed."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and os.environ.get("QUIRE_ALLOW_NO_SKIPS"):
        terminalreporter.write_line(
            f"{len(skipped)} tests were skipped, and QUIRE_ALLOW_NO_SKIPS is set", red=True
        )


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """The exit status that goes with it."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and reporter.stats.get("skipped") and os.environ.get("QUIRE_ALLOW_NO_SKIPS"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
