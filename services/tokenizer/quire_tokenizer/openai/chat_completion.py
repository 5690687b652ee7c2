"""/v1/chat/completions: what an answer says."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from quire.v1 import generation_pb2
from quire_tokenizer.engine import end_of_prompt
from quire_tokenizer.openai.answer import Deltas
from quire_tokenizer.openai.chat_request import ChatCompletionRequest
from quire_tokenizer.openai.choice import Choice, finish_reason_of, stop_reason_of
from quire_tokenizer.openai.event import TEXT, TextEvent, encode_event
from quire_tokenizer.openai.logprob import chat_entries, prompt_entries
from quire_tokenizer.openai.output_reader import OutputReader
from quire_tokenizer.openai.piece import content_of, message_of
from quire_tokenizer.openai.tool import ToolUse
from quire_tokenizer.openai.usage import usage_of
from quire_tokenizer.reasoning_parser import ReasoningParser
from quire_tokenizer.stream import RequestStream

ReasoningParserFactory = Callable[..., ReasoningParser]


class ChatCompletionWriter:
    """Says what an answer holds."""

    def __init__(
        self,
        request: ChatCompletionRequest,
        answer_id: str,
        tools: ToolUse,
        new_reasoning_parser: ReasoningParserFactory | None,
    ) -> None:
        self._request = request
        self._tools = tools
        self._new_reasoning_parser = new_reasoning_parser
        self._reads = tools.new_parser is not None or new_reasoning_parser is not None
        self._readers: dict[int, OutputReader] = {}
        self._head: dict[str, Any] = {"id": answer_id, "created": int(time.time())}
        self._streams: Sequence[RequestStream] = ()
        self._choices: dict[int, Choice] = {}
        self._text_events: dict[int, TextEvent] = {}
        options = request.stream_options
        self._is_plain = not (
            self._reads
            or request.logprobs
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
        document = {**head, "choices": choices, "usage": usage_of(self._streams)}
        if self._request.prompt_logprobs is not None:
            document["prompt_logprobs"] = prompt_entries(
                self._streams[0], num_top=self._request.prompt_logprobs
            )
        return document

    def _shown(self, index: int, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self._request.continued_text + choice.text}
        reason = choice.finish_reason
        if self._reads:
            reader = self._new_reader(whole=True)
            message.update(message_of(reader.feed(choice.text) + reader.finish()))
            reason = self._reason(reason, reader)
        shown: dict[str, Any] = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": reason,
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
        if self._reads:
            return first + self._read_events(delta)
        return first + encode_event(self._chunk(delta.index, {"content": delta.text}, delta))

    def _read_events(self, delta: generation_pb2.CompletionDelta) -> bytes:
        """Events of a sequence whose text is taken apart; log-probabilities and the end come with the last."""
        reader = self._readers.get(delta.index)
        if reader is None:
            reader = self._readers[delta.index] = self._new_reader(whole=False)
        pieces = reader.feed(delta.text) if delta.text else []
        if delta.finish_reason:
            pieces += reader.finish()
        contents = [content_of(piece) for piece in pieces]
        if not contents and not (delta.finish_reason or delta.logprobs):
            return b""
        *earlier, last = contents or [{}]
        chunks = [self._chunk(delta.index, content) for content in earlier]
        chunks.append(self._chunk(delta.index, last, delta))
        choice = chunks[-1]["choices"][0]
        choice["finish_reason"] = self._reason(choice["finish_reason"], reader)
        return b"".join(map(encode_event, chunks))

    def _new_reader(self, *, whole: bool) -> OutputReader:
        reasoning = None
        if self._new_reasoning_parser is not None:
            stream = self._streams[0]
            reasoning = self._new_reasoning_parser(
                prompt=end_of_prompt(stream.prompt_token_ids, stream.codec)
            )
        new_parser = self._tools.new_parser
        return OutputReader(
            reasoning,
            new_parser(holds_calls=whole) if new_parser is not None else None,
            parallel_calls=self._request.allows_parallel_calls,
        )

    def _reason(self, reason: str | None, reader: OutputReader) -> str | None:
        calls = reader.has_calls and self._tools.finishes_as_call
        return "tool_calls" if calls and reason == "stop" else reason

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
