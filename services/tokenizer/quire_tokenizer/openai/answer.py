"""From admitted requests to the bytes of an HTTP response: one JSON document, or a stream of server-sent events.

The status line is sent with the first token, so that a request that a full queue turns away gets its own status. When
the client goes, its requests are aborted. Knows no endpoint: what the events say is the writer's business.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire.errors import QuireError
from quire.v1 import generation_pb2
from quire_tokenizer.engine import Call, GenerationEngine
from quire_tokenizer.openai.error import error_body
from quire_tokenizer.stream import RequestStream
from quire_tokenizer.stream_group import ClientGone, StreamGroup

Deltas = list[tuple[int, list[generation_pb2.CompletionDelta]]]

_SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Tells nginx not to hold events back.
    (b"x-accel-buffering", b"no"),
]
_DONE = b"data: [DONE]\n\n"


class Writer(Protocol):
    """What an endpoint says."""

    def begin(self, streams: Sequence[RequestStream]) -> None:
        """The requests are admitted."""

    def events(self, deltas: Deltas) -> bytes:
        """Server-sent events for what is new."""
        ...

    def last_events(self) -> bytes:
        """Server-sent events after the last token."""
        ...

    def gather(self, deltas: Deltas) -> None:
        """Keeps what is new for the document."""

    def document(self) -> dict[str, Any]:
        """The whole answer."""
        ...


class Answer(Response):
    """Runs the calls when it is sent."""

    def __init__(
        self,
        engine: GenerationEngine,
        calls: Sequence[Call],
        writer: Writer,
        *,
        streams: bool,
        traceparent: str,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._calls = calls
        self._writer = writer
        self._streams = streams
        self._traceparent = traceparent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer. Raises the `QuireError` that came before the first token."""
        try:
            async with self._engine.open_batch(self._calls, traceparent=self._traceparent) as streams:
                group = StreamGroup(streams)
                self._writer.begin(streams)
                watch = asyncio.create_task(_watch(receive, group))
                try:
                    await (
                        self._send_events(group, send) if self._streams else self._send_document(group, send)
                    )
                finally:
                    watch.cancel()
        except ClientGone:
            return

    async def _send_events(self, group: StreamGroup, send: Send) -> None:
        deltas = await group.next()
        await send({"type": "http.response.start", "status": 200, "headers": _SSE_HEADERS})
        writer = self._writer
        try:
            while deltas:
                if events := writer.events(deltas):
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                deltas = await group.next()
            rest = writer.last_events()
        except QuireError as error:
            rest = b"data: " + error_body(error) + b"\n\n"
        await send({"type": "http.response.body", "body": rest + _DONE, "more_body": False})

    async def _send_document(self, group: StreamGroup, send: Send) -> None:
        await self._finish(group)
        body = orjson.dumps(self._writer.document())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _finish(self, group: StreamGroup) -> None:
        while deltas := await group.next():
            self._writer.gather(deltas)


async def _watch(receive: Receive, group: StreamGroup) -> None:
    """Gives the answer up when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
    group.abandon()
