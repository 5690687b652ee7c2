"""/v1/chat/completions: what an answer says."""

import time
from collections.abc import Sequence
from typing import Any

from quire.v1 import generation_pb2
from quire_tokenizer.openai.answer import Deltas
from quire_tokenizer.openai.chat_request import ChatCompletionRequest
from quire_tokenizer.openai.choice import Choice, finish_reason_of, stop_reason_of
from quire_tokenizer.openai.event import TEXT, TextEvent, encode_event
from quire_tokenizer.openai.logprob import chat_entries
from quire_tokenizer.openai.usage import usage_of
from quire_tokenizer.stream import RequestStream


class ChatCompletionWriter:
    """Says what an answer holds."""

    def __init__(self, request: ChatCompletionRequest, answer_id: str) -> None:
        self._request = request
        self._head: dict[str, Any] = {"id": answer_id, "created": int(time.time())}
        self._streams: Sequence[RequestStream] = ()
        self._choices: dict[int, Choice] = {}
        self._text_events: dict[int, TextEvent] = {}
        options = request.stream_options
        self._is_plain = not (
            request.logprobs
            or request.return_token_ids
            or (options is not None and options.continuous_usage_stats)
        )

    def begin(self, streams: Sequence[RequestStream]) -> None:
        """The request is admitted."""
        self._streams = streams
        self._head["model"] = streams[0].model

    def events(self, deltas: Deltas) -> bytes:
        """Events for what is new."""
        return b"".join([self._event(delta) for _number, news in deltas for delta in news])

    def last_events(self) -> bytes:
        """Usage, where it was asked for."""
        if not self._request.includes_usage:
            return b""
        return encode_event({**self._chunk_head(), "choices": [], "usage": usage_of(self._streams)})

    def gather(self, deltas: Deltas) -> None:
        """Keeps what is new."""
        for _number, news in deltas:
            for delta in news:
                self._choices.setdefault(delta.index, Choice()).add(delta)

    def document(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._shown(index, self._choices[index]) for index in sorted(self._choices)]
        head = {**self._head, "object": "chat.completion"}
        return {**head, "choices": choices, "usage": usage_of(self._streams)}

    def _shown(self, index: int, choice: Choice) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": self._request.continued_text + choice.text},
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._request.return_token_ids:
            shown["token_ids"] = choice.token_ids
        return shown

    def _event(self, delta: generation_pb2.CompletionDelta) -> bytes:
        event = self._text_events.get(delta.index)
        first = b""
        if event is None:
            event = self._text_events[delta.index] = TextEvent(self._chunk(delta.index, {"content": TEXT}))
            opening = {"role": "assistant", "content": self._request.continued_text}
            first = encode_event(self._chunk(delta.index, opening))
        if self._is_plain and not delta.finish_reason:
            return first + event.encode(delta.text) if delta.text else first
        return first + encode_event(self._chunk(delta.index, {"content": delta.text}, delta))

    def _chunk(
        self, index: int, content: dict[str, Any], delta: generation_pb2.CompletionDelta | None = None
    ) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": content, "logprobs": None, "finish_reason": None}
        if delta is not None:
            choice["logprobs"] = self._logprobs(delta.logprobs)
            choice["finish_reason"] = finish_reason_of(delta)
            choice["stop_reason"] = stop_reason_of(delta)
            if self._request.return_token_ids:
                choice["token_ids"] = list(delta.token_ids)
        return self._with_usage({**self._chunk_head(), "choices": [choice]})

    def _chunk_head(self) -> dict[str, Any]:
        return {**self._head, "object": "chat.completion.chunk"}

    def _logprobs(self, tokens: Sequence[generation_pb2.TokenLogprobs]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        entries = chat_entries(
            tokens,
            num_top=self._request.num_top_logprobs,
            as_token_ids=self._request.return_tokens_as_token_ids,
        )
        return {"content": entries, "refusal": None}

    def _with_usage(self, document: dict[str, Any]) -> dict[str, Any]:
        options = self._request.stream_options
        if options is not None and options.continuous_usage_stats:
            return {**document, "usage": usage_of(self._streams)}
        return {**document, "usage": None} if self._request.includes_usage else document
