"""Tasks are ended even if they miss a cancellation."""

import asyncio

from quire.rpc.ending import end_tasks


async def test_a_task_that_missed_a_cancellation_is_cancelled_again() -> None:
    num_missed = 0

    async def connected() -> None:
        nonlocal num_missed
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                num_missed += 1
                if num_missed == 2:
                    raise

    async def failed() -> None:
        raise ConnectionError

    tasks = [asyncio.create_task(each()) for each in (connected, failed)]
    await asyncio.sleep(0)
    await asyncio.wait_for(end_tasks(tasks), 10)
    assert num_missed == 2
    assert all(task.done() for task in tasks)


async def test_no_task_is_no_wait() -> None:
    await end_tasks([])
