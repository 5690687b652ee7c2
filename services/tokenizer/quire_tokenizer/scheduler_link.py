"""The one Attach stream between this process and one scheduler.

Sends what gathered since the last frame as one frame; takes each step's columns apart in one tight loop. When the
stream is lost, or tokens are missing, the requests on it are handed in again as they stand, and go on. Knows streams
and handles; no client and no text.
"""

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable
from random import uniform

import grpc

from quire.errors import ProtocolMismatch, QuireError, Unavailable, error_for_code
from quire.rpc.channel import is_on_this_host, open_channel
from quire.rpc.status import error_from_rpc
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from quire.wire.frame_order import BEAT_INTERVAL_S, FIRST_FRAME, FrameOrder
from quire_tokenizer.prompt_logprobs import LogprobEntries
from quire_tokenizer.stream import RequestStream

logger = logging.getLogger(__name__)

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_SHORTEST_RETRY_MS = 100
_WHOLE_REQUEST = -1
_WINDOW_BYTES = 8192
"""What may be on its way here unread from a scheduler on the same host: about a dozen frames of 64 rows. With 64 KiB a process
that was a few per cent too slow fell a hundred frames behind before the scheduler merged steps for it, and its clients saw
every end that late. Over a network so little would be on its way that a stream is bound by it: 440 frames of 8 kB a second at
a round trip of 1 ms, where steps may be 330."""


class SchedulerLink:
    """A lasting connection to one scheduler address."""

    def __init__(self, address: str, peer_id: str, on_state: "Callable[[SchedulerLink], None]") -> None:
        self.address = address
        self.state = scheduler_pb2.ServingState()
        self.attached = False
        self._peer_id = peer_id
        self._on_state = on_state
        self._streams: dict[int, RequestStream] = {}
        self._handles: dict[RequestStream, int] = {}
        self._last_handle = 0
        self._retries: dict[int, asyncio.TimerHandle] = {}
        self._outgoing = _Outgoing()
        self.move: Callable[[RequestStream, SchedulerLink], bool] = lambda stream, link: False
        """Hands a request of this link to another one; False when no other can serve it now."""

    @property
    def num_live(self) -> int:
        """Requests on this link."""
        return len(self._streams)

    @property
    def can_serve(self) -> bool:
        """Whether a request handed in now would be run without waiting for a worker."""
        return self.attached and self.state.ready and not self.state.draining

    @property
    def draining(self) -> bool:
        """Whether the scheduler is there but takes nothing more."""
        return self.attached and self.state.draining

    def submit(self, stream: RequestStream) -> None:
        """Hands a request in, now or as soon as the scheduler is there."""
        self._last_handle += 1
        self._streams[self._last_handle] = stream
        self._handles[stream] = self._last_handle
        if self.attached:
            self._outgoing.admit(stream.admission(self._last_handle))

    def withdraw(self, stream: RequestStream) -> None:
        """The client of a request is gone, or its request has ended here: the scheduler may forget it."""
        handle = self._handles.pop(stream, None)
        if handle is not None:
            del self._streams[handle]
            self._abort(handle, _WHOLE_REQUEST)

    def move_all(self) -> None:
        """Requests that another scheduler can serve go on there; the others wait for this one."""
        for stream in list(self._handles):
            self.move(stream, self)

    async def run(self) -> None:
        """Stays attached until cancelled."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await self._serve_once()
                why = "the scheduler ended the stream"
            except grpc.aio.AioRpcError as rpc_error:
                error = error_from_rpc(rpc_error)
                why = error.message
                if isinstance(error, ProtocolMismatch):
                    logger.error(
                        "the scheduler refuses this process", extra={"scheduler": self.address, "why": why}
                    )
            except Unavailable as error:
                why = error.message
            if self.attached:
                logger.warning("lost the scheduler", extra={"scheduler": self.address, "why": why})
                backoff_s = _FIRST_BACKOFF_S
                self.attached = False
                self._on_state(self)
                self.move_all()
            await asyncio.sleep(uniform(backoff_s / 2, backoff_s))
            backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _serve_once(self) -> None:
        outgoing = self._outgoing = _Outgoing()
        try:
            window_bytes = _WINDOW_BYTES if is_on_this_host(self.address) else None
            async with open_channel(self.address, window_bytes=window_bytes) as channel:
                call = scheduler_pb2_grpc.SchedulerServiceStub(channel).Attach(self._frames(outgoing))
                order = FrameOrder()
                async for response in call:
                    if order.is_new(response.frame_number):
                        self._take(response)
        finally:
            # grpc leaves a call's request iterator waiting when the call ends: it must end here.
            outgoing.close()

    def _take(self, response: scheduler_pb2.AttachResponse) -> None:
        match response.WhichOneof("frame"):
            case "tokens":
                self._take_tokens(response.tokens)
            case "welcome":
                self._take_welcome(response.welcome)
            case "state":
                self._take_state(response.state)
            case _:
                logger.warning("an empty frame from the scheduler", extra={"scheduler": self.address})

    async def _frames(self, outgoing: "_Outgoing") -> AsyncIterator[scheduler_pb2.AttachRequest]:
        hello = scheduler_pb2.AttachHello(protocol_version=PROTOCOL_VERSION, peer_id=self._peer_id)
        yield scheduler_pb2.AttachRequest(hello=hello, frame_number=FIRST_FRAME)
        frame_numbers = itertools.count(FIRST_FRAME + 1)
        while (submit := await outgoing.take()) is not None:
            yield scheduler_pb2.AttachRequest(submit=submit, frame_number=next(frame_numbers))

    def _take_welcome(self, welcome: scheduler_pb2.AttachWelcome) -> None:
        """A new stream knows nothing: every live request is handed in again as it stands."""
        self.attached = True
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        for handle, stream in self._streams.items():
            self._outgoing.admit(stream.admission(handle))
        logger.info("attached", extra={"scheduler": self.address, "resumed": len(self._streams)})
        self._take_state(welcome.state)

    def _take_state(self, state: scheduler_pb2.ServingState) -> None:
        self.state = state
        self._on_state(self)

    def _take_tokens(self, frame: scheduler_pb2.TokenFrame) -> None:
        """The loop that every token passes: one pass over the row columns."""
        token_ids = list(frame.token_ids)
        logprobs = _LogprobReader(frame.logprobs) if frame.HasField("logprobs") else None
        streams = self._streams
        for handle, num_cached in zip(frame.cached_handles, frame.cached_tokens, strict=True):
            if (stream := streams.get(handle)) is not None:
                stream.note_cached_tokens(num_cached)
        if frame.HasField("prompt_logprobs"):
            self._take_prompt_logprobs(frame.prompt_logprobs)
        at = 0
        for row, (handle, index, first, count) in enumerate(
            zip(frame.handles, frame.indexes, frame.first_token_indexes, frame.num_tokens, strict=True)
        ):
            start, at = at, at + count
            entries = logprobs.take(row, count) if logprobs is not None else []
            stream = streams.get(handle)
            if stream is None or not count:
                continue
            outcome = stream.receive(index, first, token_ids[start:at], entries)
            if outcome:
                self._handle_outcome(outcome, handle, index, stream)
        for row, logprob, score in zip(frame.beam_rows, frame.beam_logprobs, frame.beam_scores, strict=True):
            if (stream := streams.get(frame.handles[row])) is not None:
                stream.note_score(frame.indexes[row], logprob, score)
        for row, reason, stop in zip(
            frame.finished_rows, frame.finish_reasons, frame.stop_token_ids_plus_one, strict=True
        ):
            stream = streams.get(frame.handles[row])
            if stream is not None:
                stream.finish(frame.indexes[row], reason, stop - 1 if stop else None)
                self._retire_if_finished(frame.handles[row], stream)
        for error in frame.errors:
            self._take_error(error)

    def _take_prompt_logprobs(self, columns: scheduler_pb2.PromptLogprobColumns) -> None:
        triples = list(zip(columns.token_ids, columns.values, columns.ranks, strict=True))
        at = 0
        for handle, first, num_tokens, width in zip(
            columns.handles,
            columns.first_positions,
            columns.num_tokens,
            columns.entries_per_token,
            strict=True,
        ):
            entries = [triples[at + i * width : at + (i + 1) * width] for i in range(num_tokens)]
            at += num_tokens * width
            stream = self._streams.get(handle)
            if stream is not None and not stream.receive_prompt_logprobs(first, entries):
                self._handle_outcome("gap", handle, _WHOLE_REQUEST, stream)

    def _handle_outcome(self, outcome: str, handle: int, index: int, stream: RequestStream) -> None:
        if outcome == "gap":
            logger.warning(
                "tokens are missing; the request is resumed", extra={"request_id": stream.request_id}
            )
            self.withdraw(stream)
            self.submit(stream)
        elif stream.finished:
            self._retire_if_finished(handle, stream)
            self._abort(handle, _WHOLE_REQUEST)
        else:
            self._abort(handle, index)

    def _take_error(self, error: scheduler_pb2.RequestError) -> None:
        stream = self._streams.get(error.handle)
        if stream is None:
            return
        failure: QuireError = error_for_code(error.code, error.message, error.field, error.retry_after_ms)
        if isinstance(failure, Unavailable):
            if self.move(stream, self):
                return
            if not self.draining:
                self._retry_later(error.handle, failure)
                return
        stream.fail(failure)
        self._retire_if_finished(error.handle, stream)

    def _retry_later(self, handle: int, why: Unavailable) -> None:
        if handle in self._retries:
            return
        delay_s = max(why.retry_after_ms, _SHORTEST_RETRY_MS) / 1000
        self._retries[handle] = asyncio.get_running_loop().call_later(delay_s, self._retry, handle)

    def _retry(self, handle: int) -> None:
        """Hands a request in again that was turned away for the moment."""
        del self._retries[handle]
        stream = self._streams.get(handle)
        if stream is not None and self.attached:
            self._outgoing.admit(stream.admission(handle))

    def _retire_if_finished(self, handle: int, stream: RequestStream) -> None:
        if stream.finished and self._streams.pop(handle, None) is not None:
            del self._handles[stream]

    def _abort(self, handle: int, index: int) -> None:
        if self.attached:
            self._outgoing.abort(handle, index)


class _Outgoing:
    """What one stream still has to say, as frames; ends with the stream, so that no other stream's call drains it.

    A scheduler takes a frame's admissions before its aborts. An admission that follows an abort therefore begins
    the next frame: it may carry the request id that the abort sets free.
    """

    def __init__(self) -> None:
        self._frames: deque[scheduler_pb2.SubmitFrame] = deque()
        self._changed = asyncio.Event()
        self._closed = False

    def admit(self, admission: scheduler_pb2.Admission) -> None:
        """Adds a request after everything said so far."""
        if not self._frames or self._frames[-1].abort_handles:
            self._frames.append(scheduler_pb2.SubmitFrame())
        self._frames[-1].admissions.append(admission)
        self._changed.set()

    def abort(self, handle: int, index: int) -> None:
        """Adds an abort after everything said so far."""
        if not self._frames:
            self._frames.append(scheduler_pb2.SubmitFrame())
        self._frames[-1].abort_handles.append(handle)
        self._frames[-1].abort_indexes.append(index)
        self._changed.set()

    async def take(self) -> scheduler_pb2.SubmitFrame | None:
        """The next frame, an empty one when there was nothing to say for a while; None once closed."""
        while not self._closed and not self._frames:
            self._changed.clear()
            try:
                async with asyncio.timeout(BEAT_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                return scheduler_pb2.SubmitFrame()
        return None if self._closed else self._frames.popleft()

    def close(self) -> None:
        """The stream has ended: whoever waits in `take` goes home, and what was not said is dropped."""
        self._closed = True
        self._changed.set()


class _LogprobReader:
    """Walks the log-probability columns of a frame in step with its rows."""

    def __init__(self, columns: scheduler_pb2.LogprobColumns) -> None:
        self._entries_per_token = list(columns.entries_per_token)
        self._triples = list(zip(columns.token_ids, columns.values, columns.ranks, strict=True))
        self._at = 0

    def take(self, row: int, num_tokens: int) -> list[LogprobEntries]:
        """Entries of each token of a row; none when the row did not ask."""
        num_entries = self._entries_per_token[row]
        if not num_entries:
            return []
        taken: list[LogprobEntries] = []
        for _ in range(num_tokens):
            taken.append(self._triples[self._at : self._at + num_entries])
            self._at += num_entries
        return taken
