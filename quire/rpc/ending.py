"""How the tasks of a service end that speak to others."""

import asyncio
from collections.abc import Iterable
from typing import Any

_PATIENCE_S = 0.5


async def end_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancels tasks until they have ended, and drops what they raise. Once is not always enough: a cancellation that meets the end
    of a call can come out as that call's error, after which who stays connected connects again.
    """
    pending = set(tasks)
    ended: set[asyncio.Task[Any]] = set()
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=_PATIENCE_S)
        ended |= done
    await asyncio.gather(*ended, return_exceptions=True)
