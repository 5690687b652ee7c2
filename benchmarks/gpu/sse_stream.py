"""One client process's streams over HTTP: `/v1/completions` with server-sent events, one connection per stream.

Reads raw bytes while a run lasts and takes them apart afterwards, so that a client costs little beside the server that it
measures.
"""

import asyncio
import json
from time import monotonic
from typing import cast

from benchmarks.gpu.workload import Ask
from quire.bench.trace import Trace

_READY_POLL_S = 0.05
_READY_TIMEOUT_S = 60.0
_END = b"0\r\n\r\n"
_EVENT = b"data: "
_DONE = b"[DONE]"


class SseStreams:
    """A stack of connections, each used by one request at a time."""

    def __init__(self, address: str, num_streams: int) -> None:
        self._host, _, port = address.removeprefix("http://").rpartition(":")
        self._port = int(port)
        self._num_streams = num_streams
        self._idle: list[_Connection] = []

    async def open(self) -> None:
        """Connects as often as there are streams, once every process behind the port can serve."""
        async with asyncio.timeout(_READY_TIMEOUT_S):
            self._idle = [await self._ready_connection() for _ in range(self._num_streams)]

    async def close(self) -> None:
        """Closes every connection."""
        for connection in self._idle:
            connection.close()

    async def ask(self, index: int, message: bytes) -> tuple[list[float], list[bytes]]:
        """One request: when pieces of its answer came, and their bytes."""
        connection = self._idle.pop()
        answer = await connection.exchange(message)
        self._idle.append(connection)
        return answer

    def encode(self, ask: Ask) -> bytes:
        """The request on the wire."""
        body = {
            "prompt": ask.prompt_token_ids,
            "max_tokens": ask.num_out,
            "seed": ask.seed,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **ask.sampling,
        }
        return _post("/v1/completions", json.dumps(body).encode())

    @staticmethod
    def trace(sent_s: float, times_s: list[float], messages: list[bytes]) -> Trace:
        """What the events held. Only the usage counts tokens: an event of text is taken for one, the last for the rest."""
        events = [json.loads(event) for event in _events(b"".join(messages))]
        num_tokens = events[-1]["usage"]["completion_tokens"]
        texts = [choice["text"] for event in events for choice in event["choices"]]
        times = [
            time for time, piece in zip(times_s, messages, strict=True) for _ in range(piece.count(_EVENT))
        ]
        times = times[: len(texts)]
        counts = [1] * len(texts)
        counts[-1] += num_tokens - len(texts)
        return Trace(sent_s=sent_s, times_s=times, counts=counts, num_chars=sum(map(len, texts)))

    async def _ready_connection(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        while True:
            _, pieces = await connection.exchange(_get("/ready"), end=b"\r\n\r\n")
            if pieces[0].startswith(b"HTTP/1.1 200"):
                return connection
            await asyncio.sleep(_READY_POLL_S)


class _Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._end = _END
        self._times: list[float] = []
        self._pieces: list[bytes] = []
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._times.append(monotonic())
        self._pieces.append(data)
        if data.endswith(self._end) and self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(exc or ConnectionError("the server closed the connection"))

    async def exchange(self, message: bytes, end: bytes = _END) -> tuple[list[float], list[bytes]]:
        """Sends a request and waits for the end of its answer."""
        self._end, self._times, self._pieces = end, [], []
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        await self._done
        return self._times, self._pieces

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()


def _events(stream: bytes) -> list[bytes]:
    """The documents of a chunked answer, without the end mark. Raises `ValueError` on an answer that is no stream."""
    head, _, body = stream.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise ValueError(f"the server answered {stream[:500]!r}")
    text = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        text += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    events = [line.removeprefix(_EVENT) for line in text.split(b"\n\n") if line]
    if not events or events[-1] != _DONE:
        raise ValueError(f"the stream ended with {text[-200:]!r}")
    return events[:-1]


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: quire\r\n\r\n".encode()


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: quire\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
