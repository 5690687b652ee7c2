"""From a client's request to a stream of responses: what every face of the front door shares.

Resolves the prompt (text, ids or chat), validates, hands the request to a scheduler and takes care that it is given up
when its client goes. Knows no gRPC service and no HTTP.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from quire.beam_search_params import BeamSearchParams
from quire.errors import InvalidRequest, Overloaded, RequestExists
from quire.sampling_params import SamplingParams
from quire.sampling_rules import check_bad_words, check_draws
from quire.structured_outputs import Reasoning
from quire.telemetry.attribute import INPUT_TOKENS
from quire.telemetry.tracing import NO_TRACING, Tracing
from quire.v1 import generation_pb2, scheduler_pb2
from quire_tokenizer.bad_words import bad_words_token_ids
from quire_tokenizer.conversation import Conversation
from quire_tokenizer.grammar_checker import GrammarChecker
from quire_tokenizer.model_shelf import Model, ModelShelf
from quire_tokenizer.request_trace import RequestTrace
from quire_tokenizer.router import Router
from quire_tokenizer.scheduler_link import SchedulerLink
from quire_tokenizer.stream import RequestStream
from quire_tokenizer.text_codec import TextCodec

_MAX_NAME_BYTES = 256
_RETRY_AFTER_MS = 1000
_NUM_PROMPT_TOKENS_READ = 32
_LONGEST_TOKEN_BYTES = 512
"""Text longer than this many bytes per token of context is refused without encoding it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as a face of the front door has it."""

    request: generation_pb2.GenerateRequest
    conversation: Conversation | None = None
    """Stands for the request's prompt where the face has more of it than the message can hold."""
    add_special_tokens: bool = True
    """Whether a text prompt gets the tokenizer's special tokens."""
    reasoning_after: Callable[[str], Reasoning | None] | None = None
    """What may come before constrained text, told from the end of the prompt; None where the constraint begins at once."""


class GenerationEngine:
    """The live requests of this process."""

    def __init__(
        self, shelf: ModelShelf, router: Router, max_num_requests: int, tracing: Tracing = NO_TRACING
    ) -> None:
        self._shelf = shelf
        self._router = router
        self._max_num_requests = max_num_requests
        self._live: set[tuple[str, str]] = set()
        self._tracing = tracing
        self._grammars = GrammarChecker()

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @property
    def ready(self) -> bool:
        """Whether some model can be served now."""
        return self._router.ready

    @asynccontextmanager
    async def open(
        self, request: generation_pb2.GenerateRequest, *, deadline_ms: int = 0, traceparent: str = ""
    ) -> AsyncGenerator[RequestStream, None]:
        """Admits a request for as long as the context lasts; leaving it early aborts the request.

        With `beam_search_params` set, and no `sampling_params`, its stream brings one response: all beams, best first, each
        with its text, tokens, score and finish reason. A face that has `use_beam_search` builds those by
        `quire.beam_search_params.BeamSearchParams(beam_width=n, ...).to_proto()`.

        Raises a `QuireError` that names the field, the value and the rule.
        """
        call = Call(request=request)
        async with self.open_batch([call], deadline_ms=deadline_ms, traceparent=traceparent) as (stream,):
            yield stream

    @asynccontextmanager
    async def open_batch(
        self, calls: Sequence[Call], *, deadline_ms: int = 0, traceparent: str = ""
    ) -> AsyncGenerator[list[RequestStream], None]:
        """Admits all of a client's requests or none, as `open` does one."""
        with ExitStack() as traces:
            pairs = [
                (call, traces.enter_context(RequestTrace(self._tracing, call.request, traceparent)))
                for call in calls
            ]
            keys = self._reserve(calls)
            try:
                ready = await asyncio.gather(*(self._prepare(*pair, deadline_ms) for pair in pairs))
                try:
                    for link, stream in ready:
                        link.submit(stream)
                    yield [stream for _link, stream in ready]
                finally:
                    for _link, stream in ready:
                        self._router.withdraw(stream)
            finally:
                self._live.difference_update(keys)

    def _reserve(self, calls: Sequence[Call]) -> list[tuple[str, str]]:
        """Takes the names of all calls. Raises `RequestExists` or `Overloaded`, and takes none."""
        keys: list[tuple[str, str]] = []
        for call in calls:
            request = call.request
            _check_names(request)
            request.request_id = request.request_id or secrets.token_hex(16)
            key = (request.tenant, request.request_id)
            if key in self._live or key in keys:
                raise RequestExists(f"request_id={request.request_id!r} is live already", field="request_id")
            keys.append(key)
        if len(self._live) + len(keys) > self._max_num_requests:
            raise Overloaded(
                f"{len(self._live)} requests are live, max_num_requests={self._max_num_requests}",
                retry_after_ms=_RETRY_AFTER_MS,
            )
        self._live.update(keys)
        return keys

    async def _prepare(
        self, call: Call, trace: RequestTrace, deadline_ms: int
    ) -> tuple[SchedulerLink, RequestStream]:
        """Checks and encodes one call; nothing is sent yet."""
        request = call.request
        beam_search = _beam_search_params(request)
        params = (
            beam_search.text_params() if beam_search else SamplingParams.from_proto(request.sampling_params)
        )
        constraint = params.structured_outputs
        if constraint is not None:
            await self._grammars.check(constraint)
        link = self._router.route(request.model)
        name = request.model or link.state.served_model_names[0]
        model = self._shelf.find(name)
        with trace.tokenizing(name) as span:
            prompt = await self._prompt_token_ids(call, model, link.state)
            prompt = _truncated(prompt, params, link.state.max_model_len)
            bad_words = await bad_words_token_ids(params.bad_words, model.encoder)
            span.set({INPUT_TOKENS: len(prompt)})
        if constraint is not None and call.reasoning_after is not None:
            reasoning = call.reasoning_after(end_of_prompt(prompt, model.codec))
            params = replace(params, structured_outputs=replace(constraint, reasoning=reasoning))
        if beam_search is not None:
            beam_search = beam_search.resolve(
                prompt_len=len(prompt),
                max_model_len=link.state.max_model_len,
                max_num_seqs=link.state.max_num_seqs,
                vocab_size=link.state.vocab_size,
                eos_token_ids=link.state.eos_token_ids,
            )
        _check_prompt(prompt, params, link.state)
        check_bad_words(bad_words, link.state.vocab_size)
        check_draws(params, bad_words, link.state.eos_token_ids)
        stream = RequestStream(
            request_id=request.request_id,
            tenant=request.tenant,
            prompt_token_ids=prompt,
            params=params.resolve(
                model.codec.defaults,
                prompt_len=len(prompt),
                max_model_len=link.state.max_model_len,
                vocab_size=link.state.vocab_size,
                drawn_seed=secrets.randbits(63),
            ),
            priority=request.priority,
            codec=model.codec,
            bad_words_token_ids=bad_words,
            model=name,
            eos_token_ids=link.state.eos_token_ids,
            traceparent=trace.traceparent,
            deadline_ms=deadline_ms,
            beam_search=beam_search,
        )
        trace.follow(stream)
        return link, stream

    def models(self) -> list[generation_pb2.ModelCard]:
        """The models that can be named."""
        return self._router.models()

    async def _prompt_token_ids(
        self, call: Call, model: Model, state: scheduler_pb2.ServingState
    ) -> list[int]:
        request = call.request
        if call.conversation is not None:
            return await self._rendered_token_ids(call.conversation, model, state)
        match request.WhichOneof("prompt"):
            case "text":
                _check_text(request.text, state.max_model_len, "text")
                return await model.encoder.encode(request.text, add_special_tokens=call.add_special_tokens)
            case "token_ids":
                return list(request.token_ids.ids)
            case "chat":
                return await self._rendered_token_ids(Conversation.from_proto(request.chat), model, state)
            case _:
                raise InvalidRequest("prompt is missing: set one of text, token_ids and chat", field="prompt")

    async def _rendered_token_ids(
        self, conversation: Conversation, model: Model, state: scheduler_pb2.ServingState
    ) -> list[int]:
        text = conversation.render(model.codec.chat_template)
        _check_text(text, state.max_model_len, "chat")
        return await model.encoder.encode(text, add_special_tokens=False)


def end_of_prompt(prompt_token_ids: Sequence[int], codec: TextCodec) -> str:
    """Text that says whether a model thinks already."""
    return codec.decode(prompt_token_ids[-_NUM_PROMPT_TOKENS_READ:], skip_special_tokens=False)


def _beam_search_params(request: generation_pb2.GenerateRequest) -> BeamSearchParams | None:
    if not request.HasField("beam_search_params"):
        return None
    if request.HasField("sampling_params"):
        raise InvalidRequest(
            "sampling_params: a beam search draws nothing; set it or beam_search_params, not both",
            field="sampling_params",
        )
    return BeamSearchParams.from_proto(request.beam_search_params)


def _check_names(request: generation_pb2.GenerateRequest) -> None:
    for field in ("request_id", "tenant"):
        num_bytes = len(getattr(request, field).encode())
        if num_bytes > _MAX_NAME_BYTES:
            raise InvalidRequest(
                f"{field} has {num_bytes} bytes; at most {_MAX_NAME_BYTES} are allowed", field=field
            )


def _check_text(text: str, max_model_len: int, field: str) -> None:
    if not text:
        raise InvalidRequest(f"{field} is empty: a prompt has at least one character", field=field)
    longest = max_model_len * _LONGEST_TOKEN_BYTES
    if len(text) > longest:
        raise InvalidRequest(
            f"{field} has {len(text)} characters, more than max_model_len={max_model_len} tokens can hold",
            field=field,
        )


def _truncated(prompt: list[int], params: SamplingParams, max_model_len: int) -> list[int]:
    room = params.prompt_room(max_model_len)
    return prompt if room is None else prompt[-room:]


def _check_prompt(prompt: list[int], params: SamplingParams, state: scheduler_pb2.ServingState) -> None:
    if not prompt:
        raise InvalidRequest("prompt is empty: it needs at least one token", field="prompt")
    if max(prompt) >= state.vocab_size:
        raise InvalidRequest(
            f"token_ids holds token id {max(prompt)}: ids must be below the vocabulary size {state.vocab_size}",
            field="token_ids",
        )
    if len(prompt) >= state.max_model_len:
        raise InvalidRequest(
            f"prompt has {len(prompt)} tokens: with at least one to generate it must have fewer than "
            f"max_model_len={state.max_model_len}",
            field="prompt",
        )
    if params.n > state.max_num_seqs:
        raise InvalidRequest(f"n={params.n}: must be at most max_num_seqs={state.max_num_seqs}", field="n")
