"""From a client's request to a stream of responses: what every face of the front door shares.

Resolves the prompt (text, ids or chat), validates, hands the request to a scheduler and takes care that it is given up
when its client goes. Knows no gRPC service and no HTTP.
"""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from google.protobuf.json_format import MessageToDict

from quire.errors import InvalidRequest, Overloaded, RequestExists
from quire.sampling_params import SamplingParams
from quire.telemetry.attribute import INPUT_TOKENS
from quire.telemetry.tracing import NO_TRACING, Tracing
from quire.v1 import generation_pb2, scheduler_pb2, tokenizer_pb2
from quire_tokenizer.model_shelf import Model, ModelShelf
from quire_tokenizer.request_trace import RequestTrace
from quire_tokenizer.router import Router
from quire_tokenizer.stream import RequestStream

_MAX_NAME_BYTES = 256
_RETRY_AFTER_MS = 1000
_LONGEST_TOKEN_BYTES = 512
"""Text longer than this many bytes per token of context is refused without encoding it."""


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

    @property
    def num_live(self) -> int:
        """Requests that have not ended."""
        return len(self._live)

    @asynccontextmanager
    async def open(
        self, request: generation_pb2.GenerateRequest, *, deadline_ms: int = 0, traceparent: str = ""
    ) -> AsyncGenerator[RequestStream, None]:
        """Admits a request for as long as the context lasts; leaving it early aborts the request.

        Raises a `QuireError` that names the field, the value and the rule.
        """
        with RequestTrace(self._tracing, request, traceparent) as trace:
            async with self._admitted(request, deadline_ms, trace) as stream:
                yield stream

    @asynccontextmanager
    async def _admitted(
        self, request: generation_pb2.GenerateRequest, deadline_ms: int, trace: RequestTrace
    ) -> AsyncGenerator[RequestStream, None]:
        _check_names(request)
        request_id = request.request_id or secrets.token_hex(16)
        key = (request.tenant, request_id)
        if key in self._live:
            raise RequestExists(f"request_id={request_id!r} is live already", field="request_id")
        if len(self._live) >= self._max_num_requests:
            raise Overloaded(
                f"{len(self._live)} requests are live, max_num_requests={self._max_num_requests}",
                retry_after_ms=_RETRY_AFTER_MS,
            )
        params = SamplingParams.from_proto(request.sampling_params)
        link = self._router.route(request.model)
        name = request.model or link.state.served_model_names[0]
        model = self._shelf.find(name)
        self._live.add(key)
        try:
            with trace.tokenizing(name) as span:
                prompt = await self._prompt_token_ids(request, model, link.state)
                span.set({INPUT_TOKENS: len(prompt)})
            _check_prompt(prompt, params, link.state)
            stream = RequestStream(
                request_id=request_id,
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
                model=name,
                eos_token_ids=link.state.eos_token_ids,
                traceparent=trace.traceparent,
                deadline_ms=deadline_ms,
            )
            trace.follow(stream)
            link.submit(stream)
            try:
                yield stream
            finally:
                self._router.withdraw(stream)
        finally:
            self._live.discard(key)

    def models(self) -> list[generation_pb2.ModelCard]:
        """The models that can be named."""
        return self._router.models()

    async def _prompt_token_ids(
        self, request: generation_pb2.GenerateRequest, model: Model, state: scheduler_pb2.ServingState
    ) -> list[int]:
        match request.WhichOneof("prompt"):
            case "text":
                _check_text(request.text, state.max_model_len, "text")
                return await model.encoder.encode(request.text, add_special_tokens=True)
            case "token_ids":
                return list(request.token_ids.ids)
            case "chat":
                text = render_chat(model, request.chat)
                _check_text(text, state.max_model_len, "chat")
                return await model.encoder.encode(text, add_special_tokens=False)
            case _:
                raise InvalidRequest("prompt is missing: set one of text, token_ids and chat", field="prompt")


def render_chat(model: Model, chat: tokenizer_pb2.ChatPrompt) -> str:
    """The conversation as the model sees it. Raises `InvalidRequest`."""
    if model.codec.chat_template is None:
        raise InvalidRequest("chat: the model has no chat template; send text or token_ids", field="chat")
    continues = chat.continue_final_message
    return model.codec.chat_template.render(
        [{"role": message.role, "content": message.content} for message in chat.messages],
        add_generation_prompt=chat.add_generation_prompt
        if chat.HasField("add_generation_prompt")
        else not continues,
        continue_final_message=continues,
        variables=MessageToDict(chat.chat_template_kwargs) if chat.HasField("chat_template_kwargs") else None,
    )


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
