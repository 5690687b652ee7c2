"""A bounded queue from the engine loop, which never waits, to one stream, which may."""

import asyncio
from collections import deque

from quire.v1 import scheduler_pb2


class OutboxFull(Exception):
    """The stream does not drain its queue: detach it."""


class Outbox:
    """Frames that wait for one attached peer."""

    def __init__(self, max_frames: int, max_bytes: int) -> None:
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._frames: deque[tuple[scheduler_pb2.AttachResponse, int]] = deque()
        self._num_bytes = 0
        self._filled = asyncio.Event()
        self._overflowed = False

    def put(self, frame: scheduler_pb2.AttachResponse) -> None:
        """Adds a frame, or marks the outbox as overflowed, which its reader learns next."""
        size = frame.ByteSize()
        if len(self._frames) >= self._max_frames or self._num_bytes + size > self._max_bytes:
            self._overflowed = True
            self._frames.clear()
        if not self._overflowed:
            self._frames.append((frame, size))
            self._num_bytes += size
        self._filled.set()

    async def get(self) -> scheduler_pb2.AttachResponse:
        """The next frame. Raises `OutboxFull` once the queue has overflowed."""
        while not self._frames:
            if self._overflowed:
                raise OutboxFull
            self._filled.clear()
            await self._filled.wait()
        frame, size = self._frames.popleft()
        self._num_bytes -= size
        return frame
