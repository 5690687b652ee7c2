"""One trace per request across real processes, as a collector receives it; batched steps are linked."""

import itertools
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest

from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2
from tests.doubles.otlp_collector import OtlpCollector, ReceivedSpan, running_collector
from tests.ship.served import running_stack

_PHASES = {"tokenize": "tokenizer", "queue": "scheduler", "prefill": "scheduler", "decode": "scheduler"}
_PHASES["detokenize"] = "tokenizer"
_CLIENT_SPAN = "b7ad6b7169203331"
_CHUNK_TOKENS = 16
_MODEL = "quire-shakespeare"


@dataclass(frozen=True, slots=True)
class _Traced:
    """A stack that exports to a collector."""

    stub: generation_pb2_grpc.GenerationServiceStub
    collector: OtlpCollector

    def generate(self, trace_id: str, max_tokens: int, flags: str = "01"):
        """Opens a call under a parent that the client names."""
        request = generation_pb2.GenerateRequest(
            text="Now is the winter of our discontent made glorious summer. " * 2,
            sampling_params=sampling_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=1),
        )
        return self.stub.Generate(
            request, metadata=[("traceparent", f"00-{trace_id}-{_CLIENT_SPAN}-{flags}")]
        )

    def trace(self, trace_id: str) -> dict[str, ReceivedSpan]:
        """The spans of a trace by name, once its request's own span is there; steps come several times."""
        self.collector.wait_for(
            lambda spans: (
                {"text_completion", *_PHASES} <= {span.name for span in spans if span.trace_id == trace_id}
            )
        )
        return {span.name: span for span in self.collector.spans if span.trace_id == trace_id}


@pytest.fixture(scope="module")
def traced() -> Iterator[_Traced]:
    with running_collector() as collector:
        environment = {
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            # No such proxy: an exporter or an internal channel that obeyed it would reach nobody.
            **dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), "http://127.0.0.1:1"),
            "no_proxy": "",
        }
        flags = (
            "--max-num-batched-tokens",
            str(_CHUNK_TOKENS),
            "--max-num-seqs",
            "4",
            "--no-enable-prefix-caching",
        )
        with running_stack(*flags, env=environment) as served:
            options = [("grpc.enable_http_proxy", 0)]
            with grpc.insecure_channel(served.address, options=options) as channel:
                yield _Traced(generation_pb2_grpc.GenerationServiceStub(channel), collector)


def test_a_streamed_request_is_one_trace_of_five_spans(traced: _Traced) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    responses = list(traced.generate(trace_id, max_tokens=12))
    usage = responses[-1].usage
    spans = traced.trace(trace_id)
    root = spans["text_completion"]
    assert root.parent_id == _CLIENT_SPAN
    assert root.proto.kind == root.proto.SPAN_KIND_SERVER
    assert {name: (spans[name].service, spans[name].parent_id) for name in _PHASES} == {
        name: (service, root.span_id) for name, service in _PHASES.items()
    }
    for name in ("tokenize", "queue", "prefill", "decode", "detokenize"):
        assert spans[name].attributes["gen_ai.request.model"] == _MODEL
        assert spans[name].attributes["gen_ai.usage.input_tokens"] == usage.prompt_tokens
    for name in ("decode", "detokenize", "text_completion"):
        assert spans[name].attributes["gen_ai.usage.output_tokens"] == usage.completion_tokens == 12
    assert root.attributes["gen_ai.request.max_tokens"] == 12
    assert root.attributes["gen_ai.response.finish_reasons"] == ["length"]
    chunks = [
        event.attributes[0].value.int_value
        for event in spans["prefill"].proto.events
        if event.name == "chunk"
    ]
    assert chunks == [*range(_CHUNK_TOKENS, usage.prompt_tokens, _CHUNK_TOKENS), usage.prompt_tokens]
    _phases_follow_one_another(spans)


def test_the_worker_executes_under_the_steps_of_the_trace(traced: _Traced) -> None:
    trace_id = "1af7651916cd43dd8448eb211c80319c"
    list(traced.generate(trace_id, max_tokens=5))
    spans = traced.trace(trace_id)
    traced.collector.wait_for(
        lambda received: (
            len(_of(received, trace_id, "execute")) == len(_of(received, trace_id, "step"))
            and len(_of(received, trace_id, "step")) > 5
        )
    )
    received = traced.collector.spans
    steps = {span.span_id: span for span in _of(received, trace_id, "step")}
    assert {span.parent_id for span in steps.values()} == {
        spans["prefill"].span_id,
        spans["decode"].span_id,
    }
    executed = _of(received, trace_id, "execute")
    assert {span.service for span in executed} == {"worker"}
    assert sorted(span.parent_id for span in executed) == sorted(steps)


def test_an_aborted_request_has_the_five_spans_too(traced: _Traced) -> None:
    trace_id = "2af7651916cd43dd8448eb211c80319c"
    call = traced.generate(trace_id, max_tokens=300)
    for _ in range(3):
        next(call)
    call.cancel()
    spans = traced.trace(trace_id)
    root = spans["text_completion"]
    assert {spans[name].parent_id for name in _PHASES} == {root.span_id}
    assert root.attributes["gen_ai.response.finish_reasons"] == ["abort"]
    assert 3 <= spans["decode"].attributes["gen_ai.usage.output_tokens"] < 300
    _phases_follow_one_another(spans)


def test_a_step_of_two_traced_requests_is_one_span_linked_to_both(traced: _Traced) -> None:
    trace_ids = ["3af7651916cd43dd8448eb211c80319c", "4af7651916cd43dd8448eb211c80319c"]
    calls = [traced.generate(trace_id, max_tokens=60) for trace_id in trace_ids]
    readers = [threading.Thread(target=list, args=(call,)) for call in calls]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    decodes = {traced.trace(trace_id)["decode"].span_id for trace_id in trace_ids}
    shared = [
        step
        for trace_id in trace_ids
        for step in _of(traced.collector.spans, trace_id, "step")
        if {step.parent_id, *step.links} == decodes
    ]
    assert shared, "the two requests never shared a decode step"
    keys = [step.attributes["quire.step.id"] for step in shared]
    assert len(keys) == len(set(keys)), "a step was exported twice"


def test_an_unsampled_request_leaves_no_span(traced: _Traced) -> None:
    unsampled, sampled = "5af7651916cd43dd8448eb211c80319c", "6af7651916cd43dd8448eb211c80319c"
    list(traced.generate(unsampled, max_tokens=3, flags="00"))
    list(traced.generate(sampled, max_tokens=3))
    traced.trace(sampled)
    assert not [span for span in traced.collector.spans if span.trace_id == unsampled]


def _of(spans: list[ReceivedSpan], trace_id: str, name: str) -> list[ReceivedSpan]:
    return [span for span in spans if span.trace_id == trace_id and span.name == name]


def _phases_follow_one_another(spans: dict[str, ReceivedSpan]) -> None:
    """Queue, prefill and decode leave no gap, and every span lies within the request's own."""
    phases = [spans[name].proto for name in ("queue", "prefill", "decode")]
    for before, after in itertools.pairwise(phases):
        assert before.start_time_unix_nano <= before.end_time_unix_nano == after.start_time_unix_nano
    root = spans["text_completion"].proto
    for name in ("tokenize", "queue", "detokenize"):
        assert root.start_time_unix_nano <= spans[name].proto.start_time_unix_nano
    assert spans["detokenize"].proto.end_time_unix_nano <= root.end_time_unix_nano
