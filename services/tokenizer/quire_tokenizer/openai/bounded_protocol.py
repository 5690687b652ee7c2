"""One HTTP connection, which takes a request only if its head is short enough and all of it comes soon enough.

Knows no route. The HTTP library itself would read a head without an end for ever, and wait for ever for a slow one.
"""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_REFUSAL = (
    b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
)
_BODY = b'{"error":{"message":"%b","type":"invalid_request_error","param":null,"code":"%b"}}'


class BoundedProtocol(HttpToolsProtocol):
    """A subclass sets the limits."""

    max_header_bytes = 0
    read_timeout_ms = 0
    _num_head_bytes = 0
    _reads_head = False
    _is_used = False
    _refused = False
    _deadline: asyncio.TimerHandle | None = None
    """Set from the first byte of a request, or from the start of a connection, to the last byte of a request."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first request is awaited from here on; the library times the wait for another."""
        super().connection_made(transport)
        self._set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is waited for any more."""
        self._unset_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes while a head is incomplete, but for the read in which it began."""
        if self._deadline is None:
            self._set_deadline()
        read_head_before = self._reads_head
        super().data_received(data)
        if self._reads_head and read_head_before:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > self.max_header_bytes:
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_used = self._reads_head = True
        self._num_head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete; its exact length decides."""
        self._reads_head = False
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self.max_header_bytes:
            self._refuse_head()
        if not self._refused:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Part of a body."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._unset_deadline()
        if not self._refused:
            super().on_message_complete()

    def _set_deadline(self) -> None:
        self._deadline = self.loop.call_later(self.read_timeout_ms / 1000, self._end_wait)

    def _unset_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _end_wait(self) -> None:
        """Cuts a slow client off, but for one that is being answered: what it sends meanwhile may wait."""
        self._deadline = None
        cycle = self.cycle
        answers = bool(cycle) and not cycle.response_complete
        if answers and (self.pipeline or not cycle.more_body):
            return
        if self._is_used and not (answers and cycle.response_started):
            message = b"the request did not come whole within http_read_timeout_ms=%d" % self.read_timeout_ms
            self._refuse(b"408 Request Timeout", message, b"request_timeout")
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse_head(self) -> None:
        message = b"the head of the request is larger than max_header_bytes=%d" % self.max_header_bytes
        self._refuse(b"431 Request Header Fields Too Large", message, b"request_too_large")

    def _refuse(self, status: bytes, message: bytes, code: bytes) -> None:
        if not self._refused:
            self._refused = True
            body = _BODY % (message, code)
            self.transport.write(_REFUSAL % (status, len(body), body))
            self.transport.close()
