"""One attached tokenizer process: its requests come in, its frames go out.

Knows one stream's protocol; the engine loop delivers to it without waiting (see `outbox`).
"""

import asyncio
from collections.abc import AsyncIterator

from quire.errors import InvalidRequest, QuireError
from quire.v1 import scheduler_pb2
from quire.wire.frame_order import BEAT_INTERVAL_S, FrameOrder
from quire_scheduler.admission import build_request, name_of, overloaded
from quire_scheduler.core import OwnerEvents, RequestFailure, RequestRefused
from quire_scheduler.loop import EngineLoop
from quire_scheduler.outbox import Outbox
from quire_scheduler.registry import Registry

_DEADLINE_EXCEEDED = 4
_MAX_WAITING = 1 << 20
"""Tokens and log-probability entries that may wait for a peer; some 10 bytes of its frame each."""


class Peer:
    """An owner at the other end of an Attach stream."""

    def __init__(self, loop: EngineLoop, registry: Registry, max_num_requests: int) -> None:
        self.outbox = Outbox(_MAX_WAITING)
        self._loop = loop
        self._registry = registry
        self._max_num_requests = max_num_requests
        self._deadlines: dict[int, asyncio.TimerHandle] = {}
        self._closed = False
        self.owner_id = loop.add_owner(self)
        self._beat_timer = asyncio.get_running_loop().call_later(BEAT_INTERVAL_S, self._beat)

    def deliver(self, step_id: int, events: OwnerEvents) -> None:
        """Puts what a step brought into the outbox."""
        self.outbox.put_events(step_id, events)

    def state_changed(self, state: scheduler_pb2.ServingState) -> None:
        """Puts a serving state into the outbox."""
        self.outbox.put_state(state)

    async def read(self, frames: AsyncIterator[scheduler_pb2.AttachRequest], order: FrameOrder) -> None:
        """Takes submissions until the peer's side of the stream ends or it is closed.

        Raises `InvalidRequest`, and `Unavailable` when frames were lost.
        """
        async for message in frames:
            if self._closed:
                return
            if not order.is_new(message.frame_number):
                continue
            if message.WhichOneof("frame") != "submit":
                raise InvalidRequest(
                    "only the first frame may be a hello, and none may be empty", field="frame"
                )
            self._take(message.submit)

    def close(self) -> None:
        """Aborts whatever the peer still has; nothing more is taken from it or sent to it."""
        self._closed = True
        self.outbox.close()
        self._beat_timer.cancel()
        for timer in self._deadlines.values():
            timer.cancel()
        self._loop.remove_owner(self.owner_id)

    def _beat(self) -> None:
        """A frame follows, empty if nothing happens, which shows the peer whether it has the ones before."""
        self.outbox.put_events(0, OwnerEvents())
        self._beat_timer = asyncio.get_running_loop().call_later(BEAT_INTERVAL_S, self._beat)

    def _take(self, submit: scheduler_pb2.SubmitFrame) -> None:
        num_handles, num_indexes = len(submit.abort_handles), len(submit.abort_indexes)
        if num_handles != num_indexes:
            raise InvalidRequest(
                f"abort_indexes has {num_indexes} entries: it must have one per entry of abort_handles, {num_handles}",
                field="abort_indexes",
            )
        for admission in submit.admissions:
            self._admit(admission)
        for handle, index in zip(submit.abort_handles, submit.abort_indexes, strict=True):
            self._loop.core.abort(self.owner_id, handle, None if index < 0 else index)
            if index < 0:
                self._forget_deadline(handle)
        self._loop.kick()

    def _admit(self, admission: scheduler_pb2.Admission) -> None:
        try:
            num_live = self._loop.core.num_requests_of(self.owner_id)
            if num_live >= self._max_num_requests:
                raise overloaded(num_live, self._max_num_requests)
            state = self._registry.serving_state()
            request = build_request(admission, self.owner_id, state)
            self._loop.add(request, traceparent=admission.traceparent, model=name_of(state))
        except QuireError as error:
            self._refuse(admission.handle, error.grpc_code, error.message, error.field, error.retry_after_ms)
        except RequestRefused as error:
            self._refuse(admission.handle, error.code, error.message, error.field, error.retry_after_ms)
        else:
            if admission.deadline_ms:
                self._set_deadline(admission.handle, admission.deadline_ms)

    def _refuse(self, handle: int, code: int, message: str, field: str, retry_after_ms: int) -> None:
        failure = RequestFailure(
            handle=handle, code=code, message=message, field=field, retry_after_ms=retry_after_ms
        )
        self.outbox.put_events(0, OwnerEvents(failures=[failure]))

    def _set_deadline(self, handle: int, deadline_ms: int) -> None:
        timer = asyncio.get_running_loop().call_later(deadline_ms / 1000, self._expire, handle, deadline_ms)
        self._deadlines[handle] = timer
        if len(self._deadlines) > 2 * self._max_num_requests:
            self._drop_dead_deadlines()

    def _expire(self, handle: int, deadline_ms: int) -> None:
        del self._deadlines[handle]
        message = f"the deadline of {deadline_ms} ms passed"
        if self._loop.core.abort(self.owner_id, handle, code=_DEADLINE_EXCEEDED, message=message):
            self._loop.kick()

    def _forget_deadline(self, handle: int) -> None:
        timer = self._deadlines.pop(handle, None)
        if timer is not None:
            timer.cancel()

    def _drop_dead_deadlines(self) -> None:
        for handle in [h for h in self._deadlines if not self._loop.core.is_live(self.owner_id, h)]:
            self._forget_deadline(handle)
