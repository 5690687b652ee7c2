"""SchedulerService: the gRPC face of the scheduler. Translates; decides nothing that the core or the loop could."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from dataclasses import asdict
from itertools import count

import grpc

from quire.config import SchedulerConfig
from quire.errors import (
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    ProtocolMismatch,
    QuireError,
    Unavailable,
    error_for_code,
)
from quire.rpc.status import abort_with
from quire.telemetry.tracing import NO_TRACING, Tracing, traceparent_in
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from quire.wire.frame_order import FIRST_FRAME, FrameOrder
from quire_scheduler.admission import build_request, name_of
from quire_scheduler.core import RequestRefused
from quire_scheduler.loop import EngineLoop
from quire_scheduler.outbox import OutboxFull
from quire_scheduler.peer import Peer
from quire_scheduler.registry import Registry
from quire_scheduler.token_client import HANDLE, TokenClient

logger = logging.getLogger(__name__)

_DRAIN_POLL_S = 0.05


class SchedulerService(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Attach, Generate, Abort, GetStats and Drain."""

    def __init__(
        self,
        config: SchedulerConfig,
        loop: EngineLoop,
        registry: Registry,
        scheduler_id: str,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._config = config
        self._loop = loop
        self._registry = registry
        self._scheduler_id = scheduler_id
        self._tracing = tracing
        self._peers: dict[str, Peer] = {}

    async def Attach(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.AttachRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        """Serves one tokenizer process for as long as its stream lives."""
        first = await anext(request_iterator, None)
        try:
            hello = _checked_hello(first)
        except QuireError as error:
            await abort_with(context, error)
        peer = self._new_peer(hello.peer_id)
        reader = asyncio.create_task(peer.read(request_iterator, FrameOrder(last=FIRST_FRAME)))
        try:
            yield self._welcome()
            frame_numbers = count(FIRST_FRAME + 1)
            async for frame in _frames_until(peer, reader):
                frame.frame_number = next(frame_numbers)
                yield frame
        except OutboxFull:
            await abort_with(
                context, Overloaded("the peer does not drain its frames: detached", retry_after_ms=100)
            )
        except QuireError as error:
            await abort_with(context, error)
        finally:
            reader.cancel()
            peer.close()
            if self._peers.get(hello.peer_id) is peer:
                del self._peers[hello.peer_id]

    async def Generate(
        self,
        request: scheduler_pb2.SchedulerServiceGenerateRequest,
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[scheduler_pb2.SchedulerServiceGenerateResponse]:
        """Token ids in, token ids out."""
        traceparent = traceparent_in(context.invocation_metadata())
        span = self._tracing.start_span("generate", traceparent, is_server=True)
        try:
            admission = self._admission_of(request)
            n = admission.beam_search_params.beam_width or admission.sampling_params.n or 1
            client = TokenClient(admission.request_id, len(request.prompt_token_ids), n)
            owner_id = self._loop.add_owner(client)
            try:
                state = self._registry.serving_state()
                core_request = build_request(admission, owner_id, state)
                self._loop.add(core_request, traceparent=span.traceparent, model=name_of(state))
                self._loop.kick()
                async for response in client.responses():
                    yield response
            finally:
                self._loop.remove_owner(owner_id)
        except RequestRefused as error:
            await abort_with(
                context, error_for_code(error.code, error.message, error.field, error.retry_after_ms)
            )
        except QuireError as error:
            await abort_with(context, error)
        finally:
            span.end()

    async def Abort(
        self, request: scheduler_pb2.AbortRequest, context: grpc.aio.ServicerContext
    ) -> scheduler_pb2.AbortResponse:
        """Aborts requests by id."""
        num_aborted = sum(self._loop.core.abort_id(request.tenant, each) for each in request.request_ids)
        self._loop.kick()
        return scheduler_pb2.AbortResponse(num_aborted=num_aborted)

    async def GetStats(
        self, request: scheduler_pb2.GetStatsRequest, context: grpc.aio.ServicerContext
    ) -> scheduler_pb2.GetStatsResponse:
        """Figures of this moment."""
        return scheduler_pb2.GetStatsResponse(**asdict(self._loop.core.stats()))

    async def Drain(
        self, request: scheduler_pb2.DrainRequest, context: grpc.aio.ServicerContext
    ) -> scheduler_pb2.DrainResponse:
        """Stops admission and waits for what runs."""
        remaining_s = context.time_remaining()
        limit_s = request.timeout_ms / 1000 if request.timeout_ms else remaining_s
        return scheduler_pb2.DrainResponse(num_remaining=await self.drain(limit_s))

    async def drain(self, limit_s: float | None) -> int:
        """Stops admission; returns how many requests still run when none does or `limit_s` has passed."""
        self._registry.stop_admission()
        deadline = None if limit_s is None else self._loop.now() + limit_s
        while num_requests := self._loop.core.stats().num_requests:
            if deadline is not None and self._loop.now() >= deadline:
                return num_requests
            await asyncio.sleep(_DRAIN_POLL_S)
        return 0

    def _new_peer(self, peer_id: str) -> Peer:
        """The peer of a new stream. An older stream of the same process is one whose loss only the other end has
        noticed yet: it goes, or its requests would be refused as live ones when they are resumed here.
        """
        older = self._peers.get(peer_id)
        if older is not None:
            older.close()
        peer = Peer(self._loop, self._registry, self._config.max_num_requests)
        self._peers[peer_id] = peer
        return peer

    def _welcome(self) -> scheduler_pb2.AttachResponse:
        welcome = scheduler_pb2.AttachWelcome(
            protocol_version=PROTOCOL_VERSION,
            scheduler_id=self._scheduler_id,
            state=self._registry.serving_state(),
            max_num_requests=self._config.max_num_requests,
        )
        return scheduler_pb2.AttachResponse(welcome=welcome, frame_number=FIRST_FRAME)

    def _admission_of(
        self, request: scheduler_pb2.SchedulerServiceGenerateRequest
    ) -> scheduler_pb2.Admission:
        state = self._registry.serving_state()
        if request.model and request.model not in state.served_model_names:
            raise ModelNotFound(
                f"model={request.model!r} is not served here; served: {', '.join(state.served_model_names) or 'none'}",
                field="model",
            )
        if request.sampling_params.stop:
            raise InvalidRequest(
                "stop: this service knows no text; use stop_token_ids or GenerationService", field="stop"
            )
        if request.sampling_params.bad_words:
            raise InvalidRequest(
                "bad_words: this service knows no text; use bad_words_token_ids or GenerationService",
                field="bad_words",
            )
        admission = scheduler_pb2.Admission(
            handle=HANDLE,
            request_id=request.request_id or secrets.token_hex(16),
            tenant=request.tenant,
            prompt_token_ids=request.prompt_token_ids,
            sampling_params=request.sampling_params,
            priority=request.priority,
            bad_words_token_ids=request.bad_words_token_ids,
        )
        if request.HasField("beam_search_params"):
            admission.beam_search_params.CopyFrom(request.beam_search_params)
            if not request.HasField("sampling_params"):
                admission.ClearField("sampling_params")
        elif admission.sampling_params.seed == -1 or not admission.sampling_params.HasField("seed"):
            admission.sampling_params.seed = secrets.randbits(63)
        return admission


def _checked_hello(first: scheduler_pb2.AttachRequest | None) -> scheduler_pb2.AttachHello:
    if first is None or first.WhichOneof("frame") != "hello":
        raise InvalidRequest("the first frame must be a hello", field="hello")
    if first.hello.protocol_version != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"protocol_version={first.hello.protocol_version}: this scheduler speaks {PROTOCOL_VERSION}",
            field="protocol_version",
        )
    return first.hello


async def _frames_until(
    peer: Peer, reader: "asyncio.Task[None]"
) -> AsyncIterator[scheduler_pb2.AttachResponse]:
    """The peer's frames until its side of the stream ends. Raises what its reader or its outbox raises."""
    reader.add_done_callback(lambda _reader: peer.outbox.close())
    while (frame := await peer.outbox.get()) is not None:
        yield frame
    if not reader.done():
        raise Unavailable("a newer stream of the same peer_id has taken the place of this one")
    reader.result()
