"""Tracing is off unless the environment asks for it; asked, spans reach a collector with their parents."""

import os
import subprocess
import sys

import pytest

from quire.telemetry.tracing import configure_tracing, is_sampled
from tests.doubles.otlp_collector import running_collector

_PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
_UNSAMPLED_PARENT = _PARENT[:-2] + "00"


@pytest.fixture
def collector(monkeypatch):
    with running_collector() as running:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", running.endpoint)
        # A proxy that does not exist: an exporter that obeyed it would export nothing.
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        yield running


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

    spans = {span.name: span for span in collector.spans}
    assert {span.service for span in spans.values()} == {"tokenizer"}
    assert {span.trace_id for span in spans.values()} == {_PARENT.split("-")[1]}
    assert spans["generate"].parent_id == _PARENT.split("-")[2]
    assert spans["generate"].attributes == {"gen_ai.request.model": "m"}
    assert spans["prefill"].parent_id == spans["generate"].span_id
    assert spans["prefill"].links == [_PARENT.split("-")[2]]
    prefill = spans["prefill"].proto
    assert (prefill.start_time_unix_nano, prefill.end_time_unix_nano) == (2_000, 3_000)
    assert prefill.events[0].time_unix_nano == 2_500
    assert spans["generate"].proto.status.message == "aborted"


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
    assert collector.spans[0].parent_id == ""


@pytest.mark.parametrize("service", ["quire_tokenizer", "quire_scheduler", "quire.cli.serve"])
def test_a_process_that_is_not_asked_to_trace_does_not_load_the_sdk(service):
    program = (
        f"import sys, importlib; importlib.import_module('{service}' if '.' in '{service}' else '{service}.__main__');"
        "from quire.telemetry.tracing import configure_tracing; assert not configure_tracing('x').enabled;"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [(_PARENT, True), (_UNSAMPLED_PARENT, False), ("", False), ("01", False), (_PARENT[:-2] + "zz", False)],
)
def test_only_a_sampled_parent_asks_for_spans(traceparent, sampled):
    assert is_sampled(traceparent) is sampled
