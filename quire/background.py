"""An event loop on a thread of its own, for callers that have none. One per process, shared by all that need it.

It lives as long as the process: children that it started are told to end when their thread is gone.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundLoop:
    """Runs coroutines of other threads."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon: the interpreter does not wait for it, and it still runs when exit handlers stop what is left.
        self._thread = threading.Thread(target=self._loop.run_forever, name="quire-loop", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Waits for the coroutine's result. An interrupted wait, as by Ctrl-C, cancels it."""
        assert threading.current_thread() is not self._thread, "the loop cannot wait for itself"
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call_at_last(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Waits for the coroutine, unless this is the loop's own thread, where a finalizer may find itself."""
        if threading.current_thread() is self._thread:
            self._loop.create_task(coroutine)
        else:
            self.call(coroutine)


def background_loop() -> BackgroundLoop:
    """This process's; a forked process has its own."""
    return _loop_of(os.getpid())


@cache
def _loop_of(_pid: int) -> BackgroundLoop:
    return BackgroundLoop()
