"""An OTLP/gRPC collector that keeps the spans it receives."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    """One span; ids in hex, attributes as plain values."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    proto: Any

    @property
    def links(self) -> list[str]:
        """Span ids of its links."""
        return [link.span_id.hex() for link in self.proto.links]


class OtlpCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Spans by arrival; `wait_for` blocks until enough of them are there."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._spans: list[ReceivedSpan] = []
        self.endpoint = ""

    def Export(self, request, context):
        received = [
            _received(facts["service.name"], span)
            for resource_spans in request.resource_spans
            for facts in [_values(resource_spans.resource.attributes)]
            for scope_spans in resource_spans.scope_spans
            for span in scope_spans.spans
        ]
        with self._arrived:
            self._spans += received
            self._arrived.notify_all()
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[ReceivedSpan]:
        """All spans so far."""
        with self._arrived:
            return list(self._spans)

    def wait_for(self, enough: Callable[[list[ReceivedSpan]], bool], limit_s: float = 20.0) -> None:
        """Blocks until `enough` holds for the spans so far. Fails with their names when it never does."""
        with self._arrived:
            met = self._arrived.wait_for(lambda: enough(self._spans), limit_s)
            assert met, sorted(f"{span.service}:{span.name}" for span in self._spans)


@contextlib.contextmanager
def running_collector() -> Iterator[OtlpCollector]:
    """A collector on a free port of the loopback interface."""
    collector = OtlpCollector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def _received(service: str, span: Any) -> ReceivedSpan:
    return ReceivedSpan(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _values(span.attributes),
        span,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return (
        [_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
    )
