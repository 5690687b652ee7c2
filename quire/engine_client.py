"""A client of a running stack: its calls, its keys, and what it does when a queue is full. Knows no process.

Everything here belongs to one event loop at a time; channels are opened in the loop that uses them.
"""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import grpc

from quire.errors import Overloaded, QuireError
from quire.rpc.channel import open_channel
from quire.rpc.health import check_health
from quire.rpc.status import error_from_rpc
from quire.rpc.tls import ClientTls
from quire.v1 import generation_pb2, generation_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc

_EOF: Any = grpc.aio.EOF  # pyright: ignore[reportAttributeAccessIssue] — the stubs do not know it
_GENERATION_SERVICE = "quire.v1.GenerationService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where a stack is and how it is spoken to."""

    address: str
    """host:port, or dns:///host:port."""
    api_key: str | None = None
    tls: ClientTls | None = None
    """None where the stack speaks plain gRPC."""
    model: str = ""
    """Served model name; empty where only one is served."""
    num_channels: int = 1
    """Connections over which calls go in turn; several reach several processes that share a port."""


class EngineClient:
    """The calls of one client."""

    def __init__(self, connection: Connection) -> None:
        self.model = connection.model
        self._connection = connection
        self._metadata = (("authorization", f"Bearer {connection.api_key}"),) if connection.api_key else ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: list[grpc.aio.Channel] = []
        self._generates: list[Callable[..., Any]] = []
        self._next = count()

    def generate(self, request: generation_pb2.GenerateRequest) -> "GenerateCall":
        """Starts a request; its messages are read from what this returns."""
        self._open()
        generate = self._generates[next(self._next) % len(self._generates)]
        return GenerateCall(lambda: generate(request, metadata=self._metadata))

    async def models(self) -> list[generation_pb2.ModelCard]:
        """The served models."""
        stub = generation_pb2_grpc.GenerationServiceStub(self._channel())
        return list((await self._call(stub.ListModels, generation_pb2.ListModelsRequest())).models)

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""
        request = tokenizer_pb2.TokenizeRequest(
            model=self.model, text=text, add_special_tokens=add_special_tokens
        )
        return list((await self._call(self._tokenizer().Tokenize, request)).token_ids)

    async def detokenize(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """Text of token ids."""
        request = tokenizer_pb2.DetokenizeRequest(
            model=self.model, token_ids=token_ids, skip_special_tokens=skip_special_tokens
        )
        return (await self._call(self._tokenizer().Detokenize, request)).text

    async def render(self, chat: tokenizer_pb2.ChatPrompt) -> tuple[str, list[int]]:
        """A conversation as the model sees it: text and token ids."""
        request = tokenizer_pb2.ApplyChatTemplateRequest(model=self.model, chat=chat)
        answer = await self._call(self._tokenizer().ApplyChatTemplate, request)
        return answer.text, list(answer.token_ids)

    async def check_health(self) -> None:
        """Returns when a model can be served now. Raises the `QuireError` that says why not."""
        await check_health(
            self._channel(), self._connection.address, service=_GENERATION_SERVICE, metadata=self._metadata
        )

    async def close(self) -> None:
        """Ends all calls."""
        channels, self._channels, self._loop = self._channels, [], None
        for channel in channels:
            await channel.close()

    async def _call(self, method: Any, request: Any) -> Any:
        try:
            return await method(request, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error

    def _tokenizer(self) -> tokenizer_pb2_grpc.TokenizerServiceStub:
        return tokenizer_pb2_grpc.TokenizerServiceStub(self._channel())

    def _channel(self) -> grpc.aio.Channel:
        self._open()
        return self._channels[0]

    def _open(self) -> None:
        """Opens the channels, again where another loop runs than last time: a channel serves one loop only."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        to = self._connection
        self._channels = [open_channel(to.address, tls=to.tls) for _ in range(to.num_channels)]
        stubs = [generation_pb2_grpc.GenerationServiceStub(channel) for channel in self._channels]
        self._generates = [cast("Callable[..., Any]", stub.Generate) for stub in stubs]
        self._loop = loop


class GenerateCall:
    """One request on its way: it is handed in again, after the delay that the server asks for, while a queue is full."""

    __slots__ = ("_call", "_cancelled", "_started", "_starter")

    def __init__(self, starter: Callable[[], Any]) -> None:
        self._starter = starter
        self._call = starter()
        self._started = False
        self._cancelled: asyncio.Event | None = None

    async def read(self) -> generation_pb2.GenerateResponse | None:
        """The next message; None after the last one, and after `cancel`. Raises the `QuireError` that ended it."""
        while not self._is_cancelled():
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                await self._wait_or_raise(error_from_rpc(error), error)
            except asyncio.CancelledError:
                if not self._is_cancelled():
                    self._call.cancel()
                    raise
            else:
                self._started = True
                return None if message is _EOF else message
        return None

    def cancel(self) -> None:
        """Gives the request up; the server aborts it."""
        if self._cancelled is None:
            self._cancelled = asyncio.Event()
        self._cancelled.set()
        self._call.cancel()

    def _is_cancelled(self) -> bool:
        return self._cancelled is not None and self._cancelled.is_set()

    async def _wait_or_raise(self, error: QuireError, cause: BaseException) -> None:
        if self._is_cancelled():
            return
        if self._started or not isinstance(error, Overloaded) or not error.retry_after_ms:
            raise error from cause
        # Those that were turned away together do not come back together.
        delay_s = error.retry_after_ms / 1000 * random.uniform(0.5, 1.0)
        self._cancelled = self._cancelled or asyncio.Event()
        try:
            await asyncio.wait_for(self._cancelled.wait(), delay_s)
        except TimeoutError:
            self._call = self._starter()
