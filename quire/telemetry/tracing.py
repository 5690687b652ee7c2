"""One trace per request: spans with explicit parents, exported over OTLP/gRPC when the environment asks for it.

Parents are W3C `traceparent` strings, because a span's parent usually lives in another process; there is no ambient
context. The SDK is imported only when OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is set (and
OTEL_SDK_DISABLED is not); otherwise every call here does nothing. Sampling is what OTEL_TRACES_SAMPLER says, by
default "parentbased_always_on". Knows no span name and no service.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

AttributeValue = str | int | float | bool | Sequence[str] | Sequence[int]
Attributes = Mapping[str, AttributeValue]

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_SAMPLED_FLAGS = frozenset(f"{flags:02x}" for flags in range(1, 256, 2))


class Span(Protocol):
    """A span that is open until `end`. Times are Unix nanoseconds; `None` means now."""

    @property
    def traceparent(self) -> str:
        """W3C form, to name this span as a parent in another process; "" when it is not recorded anywhere."""
        ...

    def set(self, attributes: Attributes) -> None:
        """Adds or replaces attributes."""
        ...

    def event(self, name: str, attributes: Attributes | None = None, time_ns: int | None = None) -> None:
        """Marks a moment within the span."""
        ...

    def end(self, end_ns: int | None = None, error: str | None = None) -> None:
        """Ends the span, as failed when `error` says why. Later calls do nothing."""
        ...


class Tracing(Protocol):
    """The tracing of one process."""

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere; callers skip the work of collecting them when not."""
        ...

    def start_span(
        self,
        name: str,
        parent_traceparent: str = "",
        start_ns: int | None = None,
        attributes: Attributes | None = None,
        links: Sequence[str] = (),
        *,
        is_server: bool = False,
    ) -> Span:
        """Opens a span under `parent_traceparent` ("" or a malformed one starts a trace), linked to traceparents.

        `is_server` marks the span that answers a call from outside.
        """
        ...

    def shutdown(self) -> None:
        """Exports what is buffered, waiting a few seconds at most, and ends exporting."""
        ...


def configure_tracing(service_name: str) -> Tracing:
    """The tracing that the environment asks for. OTEL_SERVICE_NAME wins over `service_name`."""
    if not _is_requested(os.environ):
        return NoTracing()
    # Not at the top: the SDK costs start-up time and memory that a process without tracing should not pay.
    from quire.telemetry.otlp import OtlpTracing

    return OtlpTracing(service_name)


def is_sampled(traceparent: str) -> bool:
    """Whether a W3C traceparent says that its trace is recorded; a malformed one does not."""
    return traceparent.count("-") == 3 and traceparent[-2:] in _SAMPLED_FLAGS


def traceparent_in(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """The traceparent that a call's metadata names; "" when there is none."""
    for key, value in metadata or ():
        if key == "traceparent" and isinstance(value, str):
            return value
    return ""


def _is_requested(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none":
        return False
    return any(environment.get(name) for name in _ENDPOINT_VARIABLES)


class NoTracing:
    """Tracing that is off."""

    enabled = False

    def start_span(
        self,
        name: str,
        parent_traceparent: str = "",
        start_ns: int | None = None,
        attributes: Attributes | None = None,
        links: Sequence[str] = (),
        *,
        is_server: bool = False,
    ) -> Span:
        return NO_SPAN

    def shutdown(self) -> None:
        pass


class _NoSpan:
    traceparent = ""

    def set(self, attributes: Attributes) -> None:
        pass

    def event(self, name: str, attributes: Attributes | None = None, time_ns: int | None = None) -> None:
        pass

    def end(self, end_ns: int | None = None, error: str | None = None) -> None:
        pass


NO_SPAN: Span = _NoSpan()
"""The span of a process whose tracing is off."""

NO_TRACING: Tracing = NoTracing()
"""The tracing of a process that was not asked for any."""
