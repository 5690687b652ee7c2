"""One answer of a conversation, streamed from a running server: over gRPC, or from the OpenAI API of an http:// address.

Knows no terminal and keeps no conversation.
"""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

import grpc

from quire.client.http_stream import HttpClient
from quire.errors import Unavailable
from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.status import error_from_rpc
from quire.rpc.tls import ClientTls
from quire.sampling_params import SamplingParams
from quire.v1 import generation_pb2, generation_pb2_grpc, tokenizer_pb2


class Message(NamedTuple):
    """What one side said."""

    role: str
    content: str


class ChatServer(Protocol):
    """Either kind of server."""

    def answer(self, messages: Sequence[Message]) -> AsyncIterator[str]:
        """The assistant's next words as they come. Raises the `QuireError` that the server answers with."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class GrpcChat:
    """A tokenizer service's gRPC address."""

    def __init__(
        self, address: str, model: str, params: SamplingParams, api_key: str, *, tls: ClientTls | None = None
    ) -> None:
        self._channel = open_channel(address, tls=tls)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._model = model
        self._params = params.to_proto()
        self._metadata = key_metadata(api_key)

    async def answer(self, messages: Sequence[Message]) -> AsyncIterator[str]:
        """See `ChatServer`."""
        turns = [tokenizer_pb2.ChatMessage(role=each.role, content=each.content) for each in messages]
        request = generation_pb2.GenerateRequest(
            model=self._model, chat=tokenizer_pb2.ChatPrompt(messages=turns), sampling_params=self._params
        )
        try:
            async for response in self._stub.Generate(request, metadata=self._metadata):
                for delta in response.outputs:
                    yield delta.text
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    async def close(self) -> None:
        """See `ChatServer`."""
        await self._channel.close()


class HttpChat:
    """An OpenAI-compatible address."""

    def __init__(
        self, base_url: str, model: str, params: dict[str, Any], api_key: str, *, tls: ClientTls | None = None
    ) -> None:
        self._client = HttpClient(base_url, api_key=api_key, tls=tls)
        self._model = model
        self._params = params

    async def answer(self, messages: Sequence[Message]) -> AsyncIterator[str]:
        """See `ChatServer`."""
        self._model = self._model or await first_model(self._client)
        body = {
            "model": self._model,
            "messages": [each._asdict() for each in messages],
            "stream": True,
            **self._params,
        }
        async for event in self._client.events("/v1/chat/completions", json.dumps(body).encode()):
            document = json.loads(event)
            if "error" in document:
                raise Unavailable(str(document["error"].get("message", document["error"])))
            for choice in document.get("choices", ()):
                yield choice.get("delta", {}).get("content") or ""

    async def close(self) -> None:
        """See `ChatServer`."""
        await self._client.close()


async def first_model(client: HttpClient) -> str:
    """The first model that an OpenAI-compatible server lists. Raises `Unavailable` where it lists none."""
    models = (await client.get_json("/v1/models")).get("data") or []
    if not models:
        raise Unavailable("the server lists no model; name one with --model")
    return str(models[0]["id"])
