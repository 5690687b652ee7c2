"""One run: every request sent at its time, no more than so many at once. Knows no protocol."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from quire.bench.backend import Backend, Seen
from quire.bench.dataset import Prompt
from quire.bench.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What came of one run."""

    request_rate: float
    traces: list[Trace]
    duration_s: float
    max_concurrent: int
    """Most requests that were open at once."""


async def run_load(
    backend: Backend,
    prompts: Sequence[Prompt],
    arrivals_s: Sequence[float],
    *,
    request_rate: float,
    max_concurrency: int | None,
) -> Run:
    """Runs all to their end."""
    gate = asyncio.Semaphore(max_concurrency or len(prompts))
    num_open = max_open = 0
    start = monotonic()

    async def ask(number: int) -> Seen:
        nonlocal num_open, max_open
        await asyncio.sleep(max(0.0, start + arrivals_s[number] - monotonic()))
        async with gate:
            num_open += 1
            max_open = max(max_open, num_open)
            try:
                return await backend.ask(prompts[number], number)
            finally:
                num_open -= 1

    seen = await asyncio.gather(*(ask(number) for number in range(len(prompts))))
    duration_s = monotonic() - start
    return Run(
        request_rate=request_rate,
        traces=[backend.read(each) for each in seen],
        duration_s=duration_s,
        max_concurrent=max_open,
    )
