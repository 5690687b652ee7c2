"""How a server is asked: over gRPC, or over OpenAI's completions or chat completions.

While a run lasts a backend does nothing per message but read the clock and keep the bytes; they are read afterwards.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

import grpc

from quire.bench.dataset import Prompt
from quire.bench.trace import Trace
from quire.client.chat_stream import first_model
from quire.client.http_stream import HttpClient
from quire.errors import QuireError, Unavailable
from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.status import error_from_rpc
from quire.rpc.tls import ClientTls
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2, tokenizer_pb2

_GENERATE = "/quire.v1.GenerationService/Generate"
_MAX_CHANNELS = 16


@dataclass(slots=True, kw_only=True)
class Seen:
    """The raw messages of one request, and when each came."""

    sent_s: float
    times_s: list[float] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    error: str = ""


class Backend(Protocol):
    """A server, and how to ask it."""

    name: str
    model: str

    async def connect(self) -> None:
        """Finds out the model's name where it was not given. Raises `QuireError` when the server does not answer."""
        ...

    async def ask(self, prompt: Prompt, number: int) -> Seen:
        """Runs one request to its end; a failure is noted, not raised."""
        ...

    def read(self, seen: Seen) -> Trace:
        """What the messages said."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class GrpcBackend:
    """A tokenizer service. Requests go round-robin over several connections: replicas share a port by connection."""

    name = "grpc"

    def __init__(
        self,
        address: str,
        model: str,
        sampling: dict[str, Any],
        api_key: str,
        *,
        tls: ClientTls | None = None,
    ) -> None:
        self.model = model
        self._sampling = sampling
        self._metadata = key_metadata(api_key)
        self._channels = [open_channel(address, tls=tls) for _ in range(_MAX_CHANNELS)]
        self._calls = [channel.unary_stream(_GENERATE) for channel in self._channels]

    async def connect(self) -> None:
        """See `Backend`."""
        stub = generation_pb2_grpc.GenerationServiceStub(self._channels[0])
        try:
            answer = await stub.ListModels(generation_pb2.ListModelsRequest(), metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
        ready = [card.id for card in answer.models if card.ready]
        if not ready:
            raise Unavailable("the server has no model that is ready")
        self.model = self.model or ready[0]

    async def ask(self, prompt: Prompt, number: int) -> Seen:
        """See `Backend`."""
        message = self._request(prompt)
        call = self._calls[number % len(self._calls)]
        seen = Seen(sent_s=monotonic())
        try:
            async for each in call(message, metadata=self._metadata):
                seen.times_s.append(monotonic())
                seen.messages.append(each)
        except grpc.aio.AioRpcError as error:
            seen.error = error_from_rpc(error).message
        return seen

    def read(self, seen: Seen) -> Trace:
        """See `Backend`."""
        return grpc_trace(seen.sent_s, seen.times_s, seen.messages, error=seen.error)

    async def close(self) -> None:
        """See `Backend`."""
        for channel in self._channels:
            await channel.close()

    def _request(self, prompt: Prompt) -> bytes:
        params = sampling_pb2.SamplingParams(max_tokens=prompt.num_out, **self._sampling)
        request = generation_pb2.GenerateRequest(model=self.model, sampling_params=params)
        if prompt.token_ids is not None:
            request.token_ids.CopyFrom(tokenizer_pb2.TokenIds(ids=prompt.token_ids))
        else:
            request.text = prompt.text
        return request.SerializeToString()


class OpenAIBackend:
    """An OpenAI-compatible server; `is_chat` asks for chat completions."""

    def __init__(
        self,
        base_url: str,
        model: str,
        sampling: dict[str, Any],
        api_key: str,
        *,
        is_chat: bool,
        tls: ClientTls | None = None,
    ) -> None:
        self.name = "openai-chat" if is_chat else "openai"
        self.model = model
        self._is_chat = is_chat
        self._path = "/v1/chat/completions" if is_chat else "/v1/completions"
        self._sampling = sampling
        self._client = HttpClient(base_url, api_key=api_key, tls=tls)

    async def connect(self) -> None:
        """See `Backend`."""
        self.model = self.model or await first_model(self._client)

    async def ask(self, prompt: Prompt, number: int) -> Seen:
        """See `Backend`."""
        body = self._body(prompt)
        seen = Seen(sent_s=monotonic())
        try:
            async for event in self._client.events(self._path, body):
                seen.times_s.append(monotonic())
                seen.messages.append(event)
        except QuireError as error:
            seen.error = error.message
        return seen

    def read(self, seen: Seen) -> Trace:
        """See `Backend`."""
        times_s: list[float] = []
        num_chars, usage, error = 0, {}, seen.error
        for time_s, message in zip(seen.times_s, seen.messages, strict=True):
            document = json.loads(message)
            usage = document.get("usage") or usage
            error = error or str((document.get("error") or {}).get("message", ""))
            text = "".join(map(self._text, document.get("choices") or ()))
            if text:
                times_s.append(time_s)
                num_chars += len(text)
        return Trace(
            sent_s=seen.sent_s,
            times_s=times_s,
            counts=[1] * len(times_s),
            num_chars=num_chars,
            num_prompt_tokens=usage.get("prompt_tokens", 0),
            num_output_tokens=usage.get("completion_tokens", len(times_s)),
            error=error or ("" if times_s else "no token came"),
        )

    async def close(self) -> None:
        """See `Backend`."""
        await self._client.close()

    def _text(self, choice: dict[str, Any]) -> str:
        if not self._is_chat:
            return choice.get("text") or ""
        delta = choice.get("delta") or {}
        return (delta.get("reasoning_content") or delta.get("reasoning") or "") + (delta.get("content") or "")

    def _body(self, prompt: Prompt) -> bytes:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": prompt.num_out,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._sampling,
        }
        if self._is_chat:
            body["messages"] = [{"role": "user", "content": prompt.text}]
        else:
            body["prompt"] = prompt.text if prompt.token_ids is None else prompt.token_ids
        return json.dumps(body).encode()


def grpc_trace(
    sent_s: float, times_s: Sequence[float], messages: Sequence[bytes], *, error: str = ""
) -> Trace:
    """What the serialized `GenerateResponse`s of one request said."""
    responses = [generation_pb2.GenerateResponse.FromString(message) for message in messages]
    counts = [sum(len(output.token_ids) for output in response.outputs) for response in responses]
    usage = responses[-1].usage if responses else generation_pb2.Usage()
    return Trace(
        sent_s=sent_s,
        times_s=[time_s for time_s, count in zip(times_s, counts, strict=True) if count],
        counts=[count for count in counts if count],
        num_chars=sum(len(output.text) for response in responses for output in response.outputs),
        num_prompt_tokens=usage.prompt_tokens,
        num_output_tokens=sum(counts),
        error=error or ("" if any(counts) else "no token came"),
    )
