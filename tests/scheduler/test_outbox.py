"""What a peer that keeps up gets, what one that lags gets, and what one that never reads gets."""

import asyncio

import pytest
from quire_scheduler.core import FinishReason, OwnerEvents
from quire_scheduler.outbox import Outbox, OutboxFull

from quire.v1 import scheduler_pb2


def _step(number: int, *handles: int, ends: tuple[int, ...] = (), logprobs: bool = False) -> OwnerEvents:
    """One token for each handle; its id tells of step and handle."""
    return OwnerEvents(
        handles=list(handles),
        indexes=[0] * len(handles),
        first_token_indexes=[number] * len(handles),
        num_tokens=[1] * len(handles),
        token_ids=[100 * number + handle for handle in handles],
        finished_rows=[handles.index(handle) for handle in ends],
        finish_reasons=[FinishReason.LENGTH] * len(ends),
        stop_token_ids_plus_one=[0] * len(ends),
        logprob_rows=[len(handles) - 1] if logprobs else [],
        logprob_entries=[1] if logprobs else [],
        logprob_ids=[number] if logprobs else [],
        logprob_values=[-0.5] if logprobs else [],
        logprob_ranks=[1] if logprobs else [],
    )


async def _tokens(outbox: Outbox) -> scheduler_pb2.TokenFrame:
    frame = await outbox.get()
    assert frame is not None
    assert frame.WhichOneof("frame") == "tokens"
    return frame.tokens


async def test_peer_that_keeps_up_gets_a_frame_per_step() -> None:
    outbox = Outbox(1000)
    for number in range(3):
        outbox.put_events(number + 1, _step(number, 7, 8))
        frame = await _tokens(outbox)
        assert frame.step_id == number + 1
        assert list(frame.token_ids) == [100 * number + 7, 100 * number + 8]


async def test_steps_that_a_lagging_peer_has_not_taken_share_a_frame() -> None:
    outbox = Outbox(1000)
    outbox.put_events(1, _step(0, 7, 8, 9, logprobs=True))
    outbox.put_events(2, _step(1, 7, 8, 9, ends=(8,)))
    outbox.put_events(3, _step(2, 7, 9, ends=(9,), logprobs=True))
    frame = await _tokens(outbox)
    assert frame.step_id == 3
    assert list(frame.handles) == [7, 8, 9, 7, 8, 9, 7, 9]
    assert list(frame.first_token_indexes) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert list(frame.token_ids) == [7, 8, 9, 107, 108, 109, 207, 209]
    assert [frame.handles[row] for row in frame.finished_rows] == [8, 9]
    assert list(frame.finished_rows) == [4, 7]
    assert list(frame.logprobs.entries_per_token) == [0, 0, 1, 0, 0, 0, 0, 1]
    assert list(frame.logprobs.token_ids) == [0, 2]


async def test_only_the_latest_serving_state_waits() -> None:
    outbox = Outbox(1000)
    outbox.put_state(scheduler_pb2.ServingState(ready=True))
    outbox.put_state(scheduler_pb2.ServingState(ready=False, max_model_len=5))
    outbox.put_events(1, _step(0, 7))
    frame = await outbox.get()
    assert frame is not None
    assert frame.state == scheduler_pb2.ServingState(ready=False, max_model_len=5)
    assert list((await _tokens(outbox)).handles) == [7]


async def test_peer_that_does_not_read_is_told_to_go() -> None:
    outbox = Outbox(4)
    outbox.put_events(1, _step(0, 7, 8, 9))
    outbox.put_events(2, _step(1, 7, 8, 9))
    outbox.put_events(3, _step(2, 7, 8, 9))
    with pytest.raises(OutboxFull):
        await outbox.get()


async def test_closing_ends_the_wait() -> None:
    outbox = Outbox(4)
    waiting = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.close()
    assert await asyncio.wait_for(waiting, 5) is None
