"""One supervised process: started, watched, restarted with a bounded backoff, and stopped.

Knows how a Quire process says that it is ready (one line on stdout), and nothing of what it serves.
"""

import asyncio
import ctypes
import json
import logging
import signal
import sys
from collections.abc import Sequence

from quire.errors import ConfigError

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
# Looked up before any fork: between fork and exec a child of a threaded process should do next to nothing.
_prctl = ctypes.CDLL(None).prctl
_READY_TIMEOUT_S = 600.0
_STOP_TIMEOUT_S = 40.0
_FIRST_BACKOFF_S = 0.2
_LONGEST_BACKOFF_S = 10.0
_STEADY_AFTER_S = 30.0


class Child:
    """A process of the stack."""

    def __init__(self, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.facts: dict[str, str] = {}
        """What the process said when it became ready."""
        self._module = module
        self._arguments = list(arguments)
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        """Process id of the present incarnation."""
        assert self._process is not None, f"{self.name} was not started"
        return self._process.pid

    async def start(self) -> None:
        """Starts the process and waits until it is ready. Raises `ConfigError` when it ends before."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            # A session of its own: Ctrl-C reaches the launcher alone, which stops the processes in order.
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        assert self._process.stdout is not None, "stdout is a pipe"
        line = await asyncio.wait_for(self._process.stdout.readline(), _READY_TIMEOUT_S)
        word, _, facts = line.decode().partition(" ")
        if word != "READY":
            status = await self._process.wait()
            raise ConfigError(f"the {self.name} process ended with status {status} before it was ready")
        self.facts = json.loads(facts)

    async def supervise(self) -> None:
        """Restarts the process whenever it ends, until `stop`."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            assert self._process is not None, f"{self.name} was not started"
            started = asyncio.get_running_loop().time()
            status = await self._process.wait()
            if self._stopping:
                return
            if asyncio.get_running_loop().time() - started > _STEADY_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            logger.warning("a process ended; it is restarted", extra={"child": self.name, "status": status})
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
            try:
                await self.start()
            except (ConfigError, OSError, ValueError) as error:
                logger.error("a restart failed", extra={"child": self.name, "why": str(error)})

    async def stop(self) -> None:
        """Asks the process to finish and end; kills it if it takes too long."""
        self._stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except TimeoutError:
            logger.warning("a process did not end in time; it is killed", extra={"child": self.name})
            process.kill()
            await process.wait()


def _die_with_parent() -> None:
    """In the child: be told to end when the thread that started it is gone, and with it the launcher, however it went."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
