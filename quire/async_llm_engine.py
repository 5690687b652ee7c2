"""AsyncLLMEngine: requests of an asyncio program, each an asynchronous iterator of its outputs.

Knows no process and no message: a stack is started or attached to by `EngineHandle`.
"""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Iterable
from typing import Self
from weakref import WeakValueDictionary

from quire.beam_search_params import BeamSearchParams
from quire.engine_args import EngineArgs
from quire.engine_client import GenerateCall
from quire.engine_handle import EngineHandle, default_sampling_params
from quire.errors import RequestExists
from quire.inputs import PromptType
from quire.outputs import RequestOutput
from quire.request_state import RequestState, new_request
from quire.sampling_params import SamplingParams
from quire.tokenizer_client import AsyncTokenizer


class AsyncStream:
    """Outputs of one request as they come. Iterated by one task; dropping it aborts the request."""

    def __init__(self, call: GenerateCall, state: RequestState) -> None:
        self._call = call
        self._state = state
        self._aborted = False

    @property
    def request_id(self) -> str:
        """Of its request."""
        return self._state.request_id

    @property
    def finished(self) -> bool:
        """Whether its last output has been taken."""
        return self._state.finished

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RequestOutput:
        state = self._state
        while not state.finished:
            response = await self._call.read()
            if response is None:
                break
            if (output := state.add(response)) is not None:
                return output
        if self._aborted and not state.finished:
            return state.aborted()
        raise StopAsyncIteration

    def abort(self) -> None:
        """Gives the request up; its last output says "abort"."""
        self._aborted = True
        self._call.cancel()


class AsyncLLMEngine:
    """An engine for servers. Made by `from_engine_args`; its requests belong to the event loop that makes them.

        engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model="/path/to/model"))
        async for output in engine.generate("ROMEO:", SamplingParams(max_tokens=50), "request-1"):
            print(output.outputs[0].text)

    A stack of its own ends with `shutdown`, with `async with`, or with the process. Failures are those of
    `quire.errors`, naming the field.
    """

    def __init__(self, engine_args: EngineArgs) -> None:
        self.engine_args = engine_args
        self._engine = EngineHandle(engine_args)
        self._client = self._engine.client
        self._live: WeakValueDictionary[str, AsyncStream] = WeakValueDictionary()

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> Self:
        """Starts a stack, or attaches to one where `engine_args` have an `address`. Blocks until a model is served."""
        return cls(engine_args)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    @property
    def address(self) -> str:
        """Where the stack's gRPC services are."""
        return self._engine.address

    @property
    def scheduler_address(self) -> str:
        """Where the scheduler of a stack of its own answers GetStats; empty for one that was attached to."""
        return self._engine.scheduler_address

    async def generate(
        self,
        prompt: PromptType,
        sampling_params: SamplingParams | None = None,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> AsyncGenerator[RequestOutput, None]:
        """Outputs of one request as they come: all so far, or as `sampling_params.output_kind` says.

        Leaving the iteration early aborts the request. While the engine's queue is full it waits for a place.
        """
        stream = await self.add_request(request_id, prompt, sampling_params, priority=priority)
        try:
            async for output in stream:
                yield output
        finally:
            if not stream.finished:
                stream.abort()

    async def beam_search(
        self,
        prompt: PromptType,
        params: BeamSearchParams,
        request_id: str | None = None,
        *,
        priority: int = 0,
    ) -> RequestOutput:
        """The best `params.beam_width` continuations, best first, each with its `score`. Cancelling it ends the search."""
        stream = await self.add_request(request_id, prompt, params, priority=priority)
        return await anext(stream)

    async def add_request(
        self,
        request_id: str | None,
        prompt: PromptType,
        sampling_params: SamplingParams | BeamSearchParams | None = None,
        *,
        priority: int = 0,
    ) -> AsyncStream:
        """Hands a request in and returns at once. Raises `RequestExists` for an id that is under way."""
        request_id = request_id or secrets.token_hex(16)
        known = self._live.get(request_id)
        if known is not None and not known.finished:
            raise RequestExists(f"request_id={request_id!r} is live already", field="request_id")
        request, state = new_request(
            request_id,
            prompt,
            sampling_params or default_sampling_params(),
            model=self._client.model,
            priority=priority,
        )
        stream = self._live[request_id] = AsyncStream(self._client.generate(request), state)
        return stream

    async def abort(self, request_id: str | Iterable[str]) -> None:
        """Gives requests up; unknown ids have ended, which is no error."""
        for each in (request_id,) if isinstance(request_id, str) else request_id:
            stream = self._live.get(each)
            if stream is not None:
                stream.abort()

    async def get_tokenizer(self) -> AsyncTokenizer:
        """The served model's tokenizer."""
        return AsyncTokenizer(self._client)

    async def check_health(self) -> None:
        """Returns when a model can be served now. Raises the `QuireError` that says why not."""
        await self._client.check_health()

    async def aclose(self) -> None:
        """Ends all calls, then a stack of its own, without blocking the event loop."""
        await self._client.close()
        await asyncio.to_thread(self._engine.stop)

    def shutdown(self) -> None:
        """Ends a stack of its own, blocking until its processes are gone. A second call does nothing."""
        self._engine.stop()
