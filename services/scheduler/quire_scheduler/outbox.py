"""What waits for one attached peer, between the engine loop, which never waits, and a stream, which may.

A peer that keeps up gets one frame per step. For one that lags, steps are merged: at most one frame of tokens and one
serving state wait, however far behind it is, so that it catches up with fewer, larger frames. Bounded in tokens.
"""

import asyncio

from quire.v1 import scheduler_pb2
from quire_scheduler.core import OwnerEvents
from quire_scheduler.owner import token_frame


class OutboxFull(Exception):
    """The stream does not drain its outbox: detach it."""


class Outbox:
    """The frames of one attached peer."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._step_id = 0
        self._events: OwnerEvents | None = None
        self._state: scheduler_pb2.ServingState | None = None
        self._changed = asyncio.Event()
        self._overflowed = False
        self._closed = False

    def put_events(self, step_id: int, events: OwnerEvents) -> None:
        """Adds what a step brought, or with 0 what none did, and owns it from now on.

        An outbox that overflows tells its reader next.
        """
        if self._overflowed:
            return
        self._step_id = max(self._step_id, step_id)
        if self._events is None:
            self._events = events
        else:
            self._events.extend(events)
            self._overflowed = _num_entries(self._events) > self._max_waiting
        self._changed.set()

    def put_state(self, state: scheduler_pb2.ServingState) -> None:
        """Adds a serving state; only the latest matters."""
        self._state = state
        self._changed.set()

    def close(self) -> None:
        """Nothing more is wanted: whoever waits in `get` goes home."""
        self._closed = True
        self._changed.set()

    async def get(self) -> scheduler_pb2.AttachResponse | None:
        """The next frame; None once closed. Raises `OutboxFull` once more waited than is allowed."""
        while not self._closed:
            if self._overflowed:
                raise OutboxFull
            if self._state is not None:
                state, self._state = self._state, None
                return scheduler_pb2.AttachResponse(state=state)
            if self._events is not None:
                events, self._events = self._events, None
                return scheduler_pb2.AttachResponse(tokens=token_frame(self._step_id, events))
            self._changed.clear()
            await self._changed.wait()
        return None


def _num_entries(events: OwnerEvents) -> int:
    """What a frame's size and the memory behind it grow with."""
    return (
        len(events.handles) + len(events.logprob_ids) + len(events.prompt_logprob_ids) + len(events.failures)
    )
