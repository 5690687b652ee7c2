"""Tracing is off unless the environment asks for it; asked, spans reach a collector with their parents."""

import threading
from concurrent import futures

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from quire.telemetry.tracing import configure_tracing

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_UNSAMPLED_PARENT = _PARENT[:-2] + "00"


class _Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP collector that keeps what it receives."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.spans: list[tuple[str, object]] = []

    def Export(self, request, context):
        with self.lock:
            for resource_spans in request.resource_spans:
                facts = {each.key: each.value.string_value for each in resource_spans.resource.attributes}
                for scope_spans in resource_spans.scope_spans:
                    self.spans += [(facts["service.name"], span) for span in scope_spans.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector(monkeypatch):
    servicer = _Collector()
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    # A proxy that does not exist: an exporter that obeyed it would export nothing.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    yield servicer
    server.stop(None).wait()


def test_without_an_endpoint_nothing_is_recorded(monkeypatch):
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    tracing = configure_tracing("worker")
    assert not tracing.enabled
    assert tracing.start_span("queue", _PARENT).traceparent == ""


def test_spans_reach_the_collector_under_the_parent_that_the_client_named(collector):
    tracing = configure_tracing("tokenizer")
    outer = tracing.start_span("generate", _PARENT, start_ns=1_000, attributes={"gen_ai.request.model": "m"})
    inner = tracing.start_span("prefill", outer.traceparent, start_ns=2_000, links=[_UNSAMPLED_PARENT])
    inner.event("chunk", {"num_tokens": 7}, time_ns=2_500)
    inner.end(3_000)
    outer.end(4_000, error="aborted")
    tracing.shutdown()

    spans = {span.name: span for _, span in collector.spans}
    assert {service for service, _ in collector.spans} == {"tokenizer"}
    assert {span.trace_id.hex() for span in spans.values()} == {_PARENT.split("-")[1]}
    assert spans["generate"].parent_span_id.hex() == _PARENT.split("-")[2]
    assert spans["prefill"].parent_span_id == spans["generate"].span_id
    assert spans["prefill"].links[0].span_id.hex() == _PARENT.split("-")[2]
    assert (spans["prefill"].start_time_unix_nano, spans["prefill"].end_time_unix_nano) == (2_000, 3_000)
    assert spans["prefill"].events[0].time_unix_nano == 2_500
    assert spans["generate"].status.message == "aborted"


def test_a_parent_that_is_not_sampled_keeps_its_children_at_home(collector):
    tracing = configure_tracing("tokenizer")
    tracing.start_span("generate", _UNSAMPLED_PARENT).end()
    tracing.shutdown()
    assert collector.spans == []


def test_a_malformed_parent_starts_a_trace_of_its_own(collector):
    tracing = configure_tracing("tokenizer")
    tracing.start_span("generate", "no traceparent").end()
    tracing.shutdown()
    assert len(collector.spans) == 1
    assert collector.spans[0][1].parent_span_id == b""
