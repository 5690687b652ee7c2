"""Tracing over OTLP/gRPC with the OpenTelemetry SDK. The only module that imports the SDK; see `tracing`."""

import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quire.telemetry.tracing import Attributes, Span

_FLUSH_TIMEOUT_MS = 3_000
_PROXY_OFF = (("grpc.enable_http_proxy", 0),)


class OtlpTracing:
    """Batches spans and exports them to the endpoint that the standard variables name."""

    enabled = True

    def __init__(self, service_name: str) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME") or service_name
        resource = Resource.create({"service.name": name, "service.namespace": "quire"})
        # The sampler, the queue's bound and the batch sizes are read by the SDK from their OTEL_ variables.
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        # The exporter's annotation knows text options only; gRPC takes this one as an integer.
        exporter = OTLPSpanExporter(channel_options=_PROXY_OFF)  # pyright: ignore[reportArgumentType]
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("quire")
        self._propagator = TraceContextTextMapPropagator()

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
        parent = self._propagator.extract({"traceparent": parent_traceparent})
        linked = [trace.Link(self._span_context(link)) for link in links if link]
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=trace.SpanKind.SERVER if is_server else trace.SpanKind.INTERNAL,
            attributes=attributes,
            links=linked,
            start_time=start_ns,
        )
        return _OtlpSpan(span)

    def shutdown(self) -> None:
        self._provider.force_flush(_FLUSH_TIMEOUT_MS)
        self._provider.shutdown()

    def _span_context(self, traceparent: str) -> trace.SpanContext:
        return trace.get_current_span(
            self._propagator.extract({"traceparent": traceparent})
        ).get_span_context()


class _OtlpSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self._traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    @property
    def traceparent(self) -> str:
        return self._traceparent

    def set(self, attributes: Attributes) -> None:
        self._span.set_attributes(attributes)

    def event(self, name: str, attributes: Attributes | None = None, time_ns: int | None = None) -> None:
        self._span.add_event(name, attributes, time_ns)

    def end(self, end_ns: int | None = None, error: str | None = None) -> None:
        if error is not None:
            self._span.set_status(trace.StatusCode.ERROR, error)
        self._span.end(end_ns)
