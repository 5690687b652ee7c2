"""Every way a request can fail, and the one table that gives each failure its gRPC code and HTTP status.

    QuireError
    ├── InvalidRequest     INVALID_ARGUMENT     400  the request breaks a rule; names the field, the value and the rule
    ├── ModelNotFound      NOT_FOUND            404  no model of that name is served here
    ├── RequestExists      ALREADY_EXISTS       409  a live request of the same tenant has this request_id
    ├── ProtocolMismatch   FAILED_PRECONDITION  412  the two processes speak different protocol versions
    ├── RequestTooLarge    OUT_OF_RANGE         413  the request is larger than the server reads
    ├── Overloaded         RESOURCE_EXHAUSTED   429  a bounded queue is full; carries a retry delay
    ├── EngineError        INTERNAL             500  the engine failed in a way no retry is promised to mend
    ├── Unavailable        UNAVAILABLE          503  nobody can serve this now; safe to retry
    ├── DeadlineExceeded   DEADLINE_EXCEEDED    504  the client's deadline passed
    ├── Unauthenticated    UNAUTHENTICATED      401  no valid key came with the request
    └── ConfigError        (none)                -   a process cannot start as configured; names the flag

Knows nothing of grpc or HTTP libraries: codes are the canonical numbers.
"""

from typing import ClassVar, NamedTuple


class QuireError(Exception):
    """A failure with a place in the table above.

    `field` names the request field (or flag) at fault, empty when none is; `retry_after_ms` is the delay, in
    milliseconds, after which a retry makes sense, 0 when none is known.
    """

    def __init__(self, message: str, *, field: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_ms = retry_after_ms

    grpc_code: ClassVar[int] = 13
    http_status: ClassVar[int] = 500


class InvalidRequest(QuireError):
    """The request breaks a rule. The message names the field, the value and the rule."""


class ModelNotFound(QuireError):
    """No model of that name is served here."""


class RequestExists(QuireError):
    """A live request of the same tenant has this request_id."""


class ProtocolMismatch(QuireError):
    """The two processes speak different protocol versions; the message names both."""


class Overloaded(QuireError):
    """A bounded queue is full."""


class RequestTooLarge(QuireError):
    """The request is larger than the server reads; the message names the limit."""


class Unauthenticated(QuireError):
    """No valid key came with the request."""


class EngineError(QuireError):
    """The engine failed in a way that no retry is promised to mend."""


class Unavailable(QuireError):
    """Nobody can serve this now; the same request may be sent again."""


class DeadlineExceeded(QuireError):
    """The client's deadline passed before the end."""


class ConfigError(QuireError):
    """A process cannot start as configured. Never travels: it has no status."""


class Status(NamedTuple):
    """One row of the table."""

    error: type[QuireError]
    grpc_code: int
    http_status: int


TABLE = (
    Status(InvalidRequest, 3, 400),
    Status(DeadlineExceeded, 4, 504),
    Status(ModelNotFound, 5, 404),
    Status(RequestExists, 6, 409),
    Status(Overloaded, 8, 429),
    Status(ProtocolMismatch, 9, 412),
    Status(RequestTooLarge, 11, 413),
    Status(EngineError, 13, 500),
    Status(Unavailable, 14, 503),
    Status(Unauthenticated, 16, 401),
)
"""Class, canonical gRPC code, HTTP status; ordered by code."""

for _row in TABLE:
    _row.error.grpc_code = _row.grpc_code
    _row.error.http_status = _row.http_status

_ERROR_OF_CODE = {row.grpc_code: row.error for row in TABLE}


def error_for_code(code: int, message: str, field: str = "", retry_after_ms: int = 0) -> QuireError:
    """The error that the canonical gRPC `code` stands for; `EngineError` for a code outside the table."""
    error = _ERROR_OF_CODE.get(code, EngineError)
    return error(message, field=field, retry_after_ms=retry_after_ms)
