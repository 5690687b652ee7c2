"""Several requests of one client waited for as one: the prompts of a batch. Knows no message format.

What came meanwhile is merged by the streams themselves, so that a slow client costs memory only for its own text.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from quire.v1 import generation_pb2
from quire_tokenizer.stream import RequestStream


class ClientGone(Exception):
    """Nobody reads the answer any more."""


class StreamGroup:
    """The open streams of one client, by number."""

    def __init__(self, streams: Sequence[RequestStream]) -> None:
        self._streams = streams
        self._changed: dict[int, None] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._abandoned = False
        for number, stream in enumerate(streams):
            stream.on_change = partial(self._note, number)
            if stream.finished:
                self._note(number)

    async def next(self) -> list[tuple[int, list[generation_pb2.CompletionDelta]]]:
        """(number of the stream, what is new in it) for each that changed; empty when all have ended.

        Raises the `QuireError` that ended a stream, or `ClientGone` after `abandon`.
        """
        while True:
            if self._abandoned:
                raise ClientGone
            changed, self._changed = self._changed, {}
            taken = [(number, self._streams[number].take()) for number in changed]
            if fresh := [entry for entry in taken if entry[1]]:
                return fresh
            if all(stream.finished for stream in self._streams):
                return []
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def abandon(self) -> None:
        """The client is gone."""
        self._abandoned = True
        self._wake()

    def _note(self, number: int) -> None:
        self._changed[number] = None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
