"""The spans that the front door makes of one request: its own, and `tokenize` and `detokenize` under it.

Does nothing but pass the client's parent on while tracing is off. Knows no scheduler and no text.
"""

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType

from quire.errors import QuireError
from quire.telemetry import attribute
from quire.telemetry.tracing import NO_SPAN, Attributes, AttributeValue, Span, Tracing
from quire.v1 import generation_pb2
from quire_tokenizer.stream import RequestStream

_REASONS: dict[int, str] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_ERROR: "error",
}
_ABORTED = "abort"
"""Also of a sequence that had not ended when its client went."""

_PARAMETERS: dict[str, str] = {
    "n": attribute.CHOICE_COUNT,
    "max_tokens": attribute.MAX_TOKENS,
    "temperature": attribute.TEMPERATURE,
    "top_p": attribute.TOP_P,
    "top_k": attribute.TOP_K,
    "seed": attribute.SEED,
}


class RequestTrace:
    """A context that lasts as long as the request; leaving it ends the spans."""

    def __init__(
        self, tracing: Tracing, request: generation_pb2.GenerateRequest, client_traceparent: str
    ) -> None:
        self._tracing = tracing
        self._request = request
        self._client_traceparent = client_traceparent
        self._stream: RequestStream | None = None
        self._span: Span = NO_SPAN
        self._model = ""

    @property
    def traceparent(self) -> str:
        """The parent of whatever is done for the request."""
        return self._span.traceparent or self._client_traceparent

    def __enter__(self) -> "RequestTrace":
        if self._tracing.enabled:
            facts = _request_attributes(self._request)
            name = f"{facts[attribute.OPERATION]} {self._request.model}".rstrip()
            self._span = self._tracing.start_span(name, self._client_traceparent, None, facts, is_server=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._tracing.enabled:
            return
        if self._stream is not None:
            self._end_stream(self._stream)
        if isinstance(error, QuireError):
            self._span.set({attribute.ERROR_TYPE: type(error).__name__})
            self._span.end(error=error.message)
        else:
            self._span.end()

    @contextmanager
    def tokenizing(self, model: str) -> Generator[Span, None, None]:
        """The time that a prompt for the served model of that name takes to become tokens."""
        self._model = model
        span = self._tracing.start_span("tokenize", self.traceparent)
        span.set({attribute.REQUEST_MODEL: model})
        try:
            yield span
        finally:
            span.end()

    def follow(self, stream: RequestStream) -> None:
        """The request was built: its stream says how it goes."""
        self._stream = stream

    def _end_stream(self, stream: RequestStream) -> None:
        facts = _response_attributes(stream, self._model)
        if stream.first_token_ns:
            self._tracing.start_span("detokenize", self.traceparent, stream.first_token_ns, facts).end()
        self._span.set(facts)


def _request_attributes(request: generation_pb2.GenerateRequest) -> dict[str, AttributeValue]:
    """What the client asked for, as far as it said so."""
    operation = "chat" if request.WhichOneof("prompt") == "chat" else "text_completion"
    facts: dict[str, AttributeValue] = {attribute.OPERATION: operation, attribute.PROVIDER: "quire"}
    params = request.sampling_params
    for field, name in _PARAMETERS.items():
        if params.HasField(field):
            facts[name] = getattr(params, field)
    if params.stop:
        facts[attribute.STOP_SEQUENCES] = list(params.stop)
    return facts


def _response_attributes(stream: RequestStream, model: str) -> Attributes:
    return {
        attribute.REQUEST_MODEL: model,
        attribute.RESPONSE_ID: stream.request_id,
        attribute.FINISH_REASONS: [_REASONS.get(reason, _ABORTED) for reason in stream.finish_reasons],
        attribute.INPUT_TOKENS: stream.num_prompt_tokens,
        attribute.OUTPUT_TOKENS: stream.num_completion_tokens,
        attribute.CACHED_TOKENS: stream.num_cached_tokens,
    }
