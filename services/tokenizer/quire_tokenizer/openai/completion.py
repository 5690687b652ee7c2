"""/v1/completions: a prompt, or a batch of them, continued."""

import time
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from quire.errors import InvalidRequest
from quire.v1 import generation_pb2
from quire_tokenizer.engine import Call
from quire_tokenizer.openai.answer import Deltas
from quire_tokenizer.openai.body import Body, Text, TokenId
from quire_tokenizer.openai.choice import Choice, finish_reason_of, stop_reason_of
from quire_tokenizer.openai.event import TEXT, TextEvent, encode_event
from quire_tokenizer.openai.logprob import completion_columns, joined_columns, prompt_columns, prompt_entries
from quire_tokenizer.openai.usage import usage_of
from quire_tokenizer.stream import RequestStream

_DEFAULT_MAX_TOKENS = 16
Prompt = Text | list[Text] | list[TokenId] | list[list[TokenId]]


class CompletionRequest(Body):
    """The body."""

    prompt: Annotated[Prompt, Field(union_mode="left_to_right")]
    """A text, token ids, or a list of either."""
    max_tokens: int | None = _DEFAULT_MAX_TOKENS
    echo: bool = False
    logprobs: int | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool = True

    @property
    def num_drawn(self) -> int:
        """Sequences per prompt, of which the n likeliest are shown."""
        return self.n if self.best_of is None else self.best_of

    def prompts(self) -> list[str | list[int]]:
        """One entry per prompt."""
        prompt: Any = self.prompt
        if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
            return [prompt]
        return prompt

    def calls(self, max_num_prompts: int) -> list[Call]:
        """One request per prompt. Raises `InvalidRequest`."""
        self._check()
        prompts = self.prompts()
        if len(prompts) > max_num_prompts:
            raise InvalidRequest(
                f"prompt holds {len(prompts)} prompts: at most {max_num_prompts} are allowed", field="prompt"
            )
        template = self.generate_request(
            n=self.num_drawn,
            max_tokens=self.max_tokens or (1 if self.echo else None),
            logprobs=self._num_logprobs(),
            **self._echoed_logprobs(),
        )
        return [self._call(template, prompt) for prompt in prompts]

    def _check(self) -> None:
        if self.suffix:
            raise InvalidRequest("suffix: inserting text before a suffix is not supported", field="suffix")
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequest(
                "max_tokens=0: must be at least 1, unless echo shows the prompt", field="max_tokens"
            )
        if self.best_of is None or self.best_of == self.n:
            return
        if self.best_of < self.n:
            raise InvalidRequest(f"best_of={self.best_of}: must be at least n={self.n}", field="best_of")
        if self.stream:
            raise InvalidRequest(
                f"best_of={self.best_of}: a stream shows all that is drawn, so it must equal n={self.n}",
                field="best_of",
            )

    def _echoed_logprobs(self) -> dict[str, int]:
        """Those of the prompt that an echo shows, where they are more than were asked for by themselves."""
        if not self.echo or self.logprobs is None:
            return {}
        return {"prompt_logprobs": max(self.logprobs, self.prompt_logprobs or 0)}

    def _num_logprobs(self) -> int | None:
        return 0 if self.logprobs is None and self.num_drawn > self.n else self.logprobs

    def _call(self, template: generation_pb2.GenerateRequest, prompt: str | list[int]) -> Call:
        request = generation_pb2.GenerateRequest()
        request.CopyFrom(template)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.token_ids.ids.extend(prompt)
        return Call(request=request, add_special_tokens=self.add_special_tokens)


class CompletionWriter:
    """Says what an answer holds."""

    def __init__(self, request: CompletionRequest, answer_id: str) -> None:
        self._request = request
        self._prompt_texts: list[str] = []
        self._head: dict[str, Any] = {
            "id": answer_id,
            "object": "text_completion",
            "created": int(time.time()),
        }
        self._streams: Sequence[RequestStream] = ()
        self._choices: dict[tuple[int, int], Choice] = {}
        self._text_events: dict[tuple[int, int], TextEvent] = {}
        self._offsets: dict[tuple[int, int], int] = {}
        options = request.stream_options
        self._is_plain = (
            request.logprobs is None
            and not request.return_token_ids
            and not (options is not None and options.continuous_usage_stats)
        )

    def begin(self, streams: Sequence[RequestStream]) -> None:
        """The requests are admitted."""
        self._streams = streams
        self._head["model"] = streams[0].model
        if self._request.echo:
            self._prompt_texts = [
                prompt if isinstance(prompt, str) else stream.codec.decode(prompt, skip_special_tokens=False)
                for prompt, stream in zip(self._request.prompts(), streams, strict=True)
            ]

    def events(self, deltas: Deltas) -> bytes:
        """Events for what is new."""
        return b"".join([self._event(number, delta) for number, news in deltas for delta in news])

    def last_events(self) -> bytes:
        """Usage, where it was asked for."""
        if not self._request.includes_usage:
            return b""
        return encode_event({**self._head, "choices": [], "usage": usage_of(self._streams)})

    def gather(self, deltas: Deltas) -> None:
        """Keeps what is new."""
        for number, news in deltas:
            for delta in news:
                self._choices.setdefault((number, delta.index), Choice()).add(delta)

    def document(self) -> dict[str, Any]:
        """The whole answer."""
        shown = [
            (number, choice) for number in range(len(self._streams)) for choice in self._likeliest(number)
        ]
        choices = [self._shown(at, number, choice) for at, (number, choice) in enumerate(shown)]
        return {**self._head, "choices": choices, "usage": usage_of(self._streams)}

    def _likeliest(self, number: int) -> list[Choice]:
        drawn = [self._choices[number, index] for index in range(self._request.num_drawn)]
        if self._request.num_drawn > self._request.n:
            drawn.sort(key=lambda choice: -choice.mean_logprob)
        return drawn[: self._request.n]

    def _shown(self, index: int, number: int, choice: Choice) -> dict[str, Any]:
        echoed = self._prompt_texts[number] if self._request.echo else ""
        generated = "" if self._request.max_tokens == 0 else choice.text
        columns = None
        if self._request.logprobs is not None:
            generated_tokens = [] if self._request.max_tokens == 0 else choice.logprobs
            columns, _end = self._columns(generated_tokens, len(echoed))
            if self._request.echo:
                columns = joined_columns(self._prompt_columns(number), columns)
        shown: dict[str, Any] = {
            "index": index,
            "text": echoed + generated,
            "logprobs": columns,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if self._request.prompt_logprobs is not None:
            shown["prompt_logprobs"] = prompt_entries(
                self._streams[number], num_top=self._request.prompt_logprobs
            )
        if self._request.return_token_ids:
            shown["token_ids"] = choice.token_ids
            shown["prompt_token_ids"] = self._streams[number].prompt_token_ids
        return shown

    def _event(self, number: int, delta: generation_pb2.CompletionDelta) -> bytes:
        key = (number, delta.index)
        event = self._text_events.get(key)
        text = "" if self._request.max_tokens == 0 else delta.text
        if event is None:
            event = self._text_events[key] = self._text_event(key)
            if self._request.echo:
                text = self._prompt_texts[number] + text
        if self._is_plain and not delta.finish_reason:
            return event.encode(text) if text else b""
        return encode_event(self._chunk(key, text, delta))

    def _text_event(self, key: tuple[int, int]) -> TextEvent:
        choice: dict[str, Any] = {
            "index": self._index(key),
            "text": TEXT,
            "logprobs": None,
            "finish_reason": None,
            "stop_reason": None,
        }
        return TextEvent(self._with_usage({**self._head, "choices": [choice]}))

    def _chunk(
        self, key: tuple[int, int], text: str, delta: generation_pb2.CompletionDelta
    ) -> dict[str, Any]:
        columns = None
        if self._request.logprobs is not None:
            is_first = key not in self._offsets
            echoed = len(self._prompt_texts[key[0]]) if self._request.echo else 0
            tokens = [] if self._request.max_tokens == 0 else delta.logprobs
            columns, self._offsets[key] = self._columns(tokens, self._offsets.get(key, echoed))
            if is_first and self._request.echo:
                columns = joined_columns(self._prompt_columns(key[0]), columns)
        choice: dict[str, Any] = {
            "index": self._index(key),
            "text": text,
            "logprobs": columns,
            "finish_reason": finish_reason_of(delta),
            "stop_reason": stop_reason_of(delta),
        }
        if self._request.return_token_ids:
            choice["token_ids"] = list(delta.token_ids)
        return self._with_usage({**self._head, "choices": [choice]})

    def _columns(self, tokens: Any, offset: int) -> tuple[dict[str, Any], int]:
        return completion_columns(
            tokens,
            offset,
            num_top=self._request.logprobs or 0,
            as_token_ids=self._request.return_tokens_as_token_ids,
        )

    def _prompt_columns(self, number: int) -> dict[str, Any]:
        return prompt_columns(
            self._streams[number],
            self._prompt_texts[number],
            num_top=self._request.logprobs or 0,
            as_token_ids=self._request.return_tokens_as_token_ids,
        )

    def _index(self, key: tuple[int, int]) -> int:
        return key[0] * self._request.n + key[1]

    def _with_usage(self, document: dict[str, Any]) -> dict[str, Any]:
        options = self._request.stream_options
        if options is not None and options.continuous_usage_stats:
            return {**document, "usage": usage_of(self._streams)}
        return {**document, "usage": None} if self._request.includes_usage else document
