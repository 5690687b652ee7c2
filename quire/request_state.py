"""One request at a client: its deltas as they come, its outputs as the caller asked for them.

The hot path of every stream: one `add` per message. Knows no call.
"""

from collections.abc import Iterable

from quire.beam_search_params import BeamSearchParams
from quire.inputs import PromptType, set_prompt
from quire.outputs import CompletionOutput, Logprob, RequestOutput
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.v1 import generation_pb2, sampling_pb2

_FINISH_REASONS = (None, "stop", "length", "abort", "error")
"""By number of quire.v1.FinishReason."""


class _Sequence:
    """All that one output sequence has."""

    __slots__ = (
        "cumulative_logprob",
        "finish_reason",
        "index",
        "logprobs",
        "score",
        "stop_reason",
        "text",
        "token_ids",
    )

    def __init__(self, index: int, *, has_logprobs: bool) -> None:
        self.index = index
        self.text = ""
        self.token_ids: list[int] = []
        self.logprobs: list[dict[int, Logprob]] | None = [] if has_logprobs else None
        self.cumulative_logprob = 0.0 if has_logprobs else None
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None
        self.score: float | None = None

    def take(self, delta: generation_pb2.CompletionDelta) -> None:
        """Adds what is new."""
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        if self.logprobs is not None:
            self._take_logprobs(delta)
        if delta.finish_reason:
            self.finish_reason = _FINISH_REASONS[delta.finish_reason]
            which = delta.WhichOneof("stop_reason")
            self.stop_reason = getattr(delta, which) if which is not None else None
            if delta.HasField("score"):
                self.score, self.cumulative_logprob = delta.score, delta.cumulative_logprob

    def so_far(self) -> CompletionOutput:
        """All of it, as a copy that does not change any more."""
        return CompletionOutput(
            self.index,
            self.text,
            self.token_ids.copy(),
            self.cumulative_logprob,
            self.logprobs.copy() if self.logprobs is not None else None,
            self.finish_reason,
            self.stop_reason,
            self.score,
        )

    def since(self, text_len: int, num_tokens: int) -> CompletionOutput:
        """What came after so many characters and tokens."""
        return CompletionOutput(
            self.index,
            self.text[text_len:],
            self.token_ids[num_tokens:],
            self.cumulative_logprob,
            self.logprobs[num_tokens:] if self.logprobs is not None else None,
            self.finish_reason,
            self.stop_reason,
            self.score,
        )

    def _take_logprobs(self, delta: generation_pb2.CompletionDelta) -> None:
        assert self.logprobs is not None
        assert self.cumulative_logprob is not None
        for position in delta.logprobs:
            self.logprobs.append(_by_token(position.entries))
            self.cumulative_logprob += position.entries[0].logprob


def new_request(
    request_id: str,
    prompt: PromptType,
    params: SamplingParams | BeamSearchParams,
    *,
    model: str,
    priority: int,
    prompt_text: str | None = None,
) -> "tuple[generation_pb2.GenerateRequest, RequestState]":
    """A request as it is sent, and what its outputs are gathered in. Raises `InvalidRequest`.

    `prompt_text` is the text of a prompt that is sent as token ids.
    """
    request = generation_pb2.GenerateRequest(request_id=request_id, model=model, priority=priority)
    if isinstance(params, BeamSearchParams):
        request.beam_search_params.CopyFrom(params.to_proto())
        n, has_logprobs, kind = params.beam_width, False, RequestOutputKind.FINAL_ONLY
    else:
        request.sampling_params.CopyFrom(params.to_proto())
        n, has_logprobs, kind = params.n, params.logprobs is not None, params.output_kind
    if kind is RequestOutputKind.CUMULATIVE:
        # What was said once is not sent again: it is kept here.
        request.sampling_params.output_kind = sampling_pb2.REQUEST_OUTPUT_KIND_DELTA
    text = set_prompt(request, prompt)
    state = RequestState(
        request_id,
        prompt=text if text is not None else prompt_text,
        prompt_token_ids=list(request.token_ids.ids) if text is None else None,
        n=n,
        has_logprobs=has_logprobs,
        kind=kind,
    )
    return request, state


class RequestState:
    """One request, until its last message."""

    __slots__ = (
        "_kind",
        "_num_cached_tokens",
        "_prompt_logprobs",
        "_sequences",
        "finished",
        "prompt",
        "prompt_token_ids",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        *,
        prompt: str | None,
        prompt_token_ids: list[int] | None,
        n: int,
        has_logprobs: bool,
        kind: RequestOutputKind,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.finished = False
        self._kind = kind
        self._num_cached_tokens: int | None = None
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._sequences = [_Sequence(index, has_logprobs=has_logprobs) for index in range(n)]

    def add(self, response: generation_pb2.GenerateResponse) -> RequestOutput | None:
        """Takes a message of deltas; returns what its caller gets to see, if anything."""
        if response.prompt_token_ids:
            self.prompt_token_ids = list(response.prompt_token_ids)
        if response.prompt_logprobs:
            self._prompt_logprobs = [
                _by_token(position.entries) if position.entries else None
                for position in response.prompt_logprobs
            ]
        if response.HasField("usage"):
            self.finished = True
            self._num_cached_tokens = response.usage.cached_tokens
        if self._kind is RequestOutputKind.DELTA:
            return self._output([self._taken(delta) for delta in response.outputs])
        for delta in response.outputs:
            self._sequences[delta.index].take(delta)
        if self._kind is RequestOutputKind.FINAL_ONLY and not self.finished:
            return None
        return self._output([sequence.so_far() for sequence in self._sequences])

    def aborted(self) -> RequestOutput:
        """The last output of a request that its own client gave up."""
        self.finished = True
        for sequence in self._sequences:
            sequence.finish_reason = sequence.finish_reason or "abort"
        if self._kind is RequestOutputKind.DELTA:
            return self._output([each.since(len(each.text), len(each.token_ids)) for each in self._sequences])
        return self._output([sequence.so_far() for sequence in self._sequences])

    def _taken(self, delta: generation_pb2.CompletionDelta) -> CompletionOutput:
        sequence = self._sequences[delta.index]
        before = len(sequence.text), len(sequence.token_ids)
        sequence.take(delta)
        return sequence.since(*before)

    def _output(self, outputs: list[CompletionOutput]) -> RequestOutput:
        return RequestOutput(
            self.request_id,
            self.prompt,
            self.prompt_token_ids,
            self._prompt_logprobs,
            outputs,
            self.finished,
            self._num_cached_tokens,
        )


def _by_token(entries: Iterable[generation_pb2.TokenLogprob]) -> dict[int, Logprob]:
    return {each.token_id: Logprob(each.logprob, each.rank, each.text) for each in entries}
