"""The link to schedulers, against one that is played by the test: what is handed in, when, to whom and how often."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from quire_tokenizer import scheduler_link
from quire_tokenizer.router import Router
from quire_tokenizer.scheduler_link import SchedulerLink
from quire_tokenizer.stream import RequestStream
from quire_tokenizer.text_codec import TextCodec

from quire.errors import Unavailable
from quire.rpc.server import bind, build_server
from quire.sampling_params import SamplingParams
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from tests.tokenizer.families import word_level

_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
_WITHIN_S = 10


class _PlayedScheduler(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Welcomes a peer, notes what it hands in, and says what the test wants said."""

    def __init__(self) -> None:
        self.state = scheduler_pb2.ServingState(
            ready=True, served_model_names=["m"], max_model_len=100, vocab_size=1000, max_num_seqs=8
        )
        self.submitted: asyncio.Queue[scheduler_pb2.SubmitFrame] = asyncio.Queue(64)
        self._said: asyncio.Queue[scheduler_pb2.AttachResponse | None] = asyncio.Queue(64)

    async def Attach(
        self, request_iterator: AsyncIterator[scheduler_pb2.AttachRequest], context: object
    ) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        await anext(request_iterator)
        welcome = scheduler_pb2.AttachWelcome(protocol_version=PROTOCOL_VERSION, state=self.state)
        yield scheduler_pb2.AttachResponse(welcome=welcome)
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            while (response := await self._said.get()) is not None:
                yield response
        finally:
            reader.cancel()

    async def admission(self) -> scheduler_pb2.Admission:
        """The next request that is handed in."""
        while True:
            frame = await asyncio.wait_for(self.submitted.get(), _WITHIN_S)
            if frame.admissions:
                (admission,) = frame.admissions
                return admission

    def refuse(self, handle: int, retry_after_ms: int) -> None:
        """Turns a request away for the moment."""
        frame = scheduler_pb2.TokenFrame()
        frame.errors.add(handle=handle, code=_UNAVAILABLE, message="not now", retry_after_ms=retry_after_ms)
        self._said.put_nowait(scheduler_pb2.AttachResponse(tokens=frame))

    def bring(self, handle: int, first: int, token_ids: list[int]) -> None:
        """One row of tokens."""
        frame = scheduler_pb2.TokenFrame(
            handles=[handle],
            indexes=[0],
            first_token_indexes=[first],
            num_tokens=[len(token_ids)],
            token_ids=token_ids,
        )
        self._said.put_nowait(scheduler_pb2.AttachResponse(tokens=frame))

    def drain(self) -> None:
        """Says that it drains."""
        self.state.draining = True
        self._said.put_nowait(scheduler_pb2.AttachResponse(state=self.state))

    def end_stream(self) -> None:
        """Ends the Attach stream; the peer may come again."""
        self._said.put_nowait(None)

    async def _read(self, frames: AsyncIterator[scheduler_pb2.AttachRequest]) -> None:
        async for message in frames:
            if message.submit.admissions or message.submit.abort_handles:
                await self.submitted.put(message.submit)


@asynccontextmanager
async def _linked(*schedulers: _PlayedScheduler) -> AsyncIterator[tuple[Router, list[SchedulerLink]]]:
    """A router over one attached link per scheduler."""
    servers: list[grpc.aio.Server] = []
    links: list[SchedulerLink] = []
    attached = [asyncio.Event() for _ in schedulers]
    for number, played in enumerate(schedulers):
        server = build_server()
        scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(played, server)
        port = bind(server, "127.0.0.1", 0)
        await server.start()
        servers.append(server)
        links.append(SchedulerLink(f"127.0.0.1:{port}", "test", lambda _link, n=number: attached[n].set()))
    router = Router(links)
    tasks = [asyncio.create_task(link.run()) for link in links]
    try:
        await asyncio.wait_for(asyncio.gather(*(event.wait() for event in attached)), _WITHIN_S)
        yield router, links
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in servers:
            await server.stop(None)


def _request(request_id: str = "one") -> RequestStream:
    return RequestStream(
        request_id=request_id,
        tenant="",
        prompt_token_ids=[1],
        params=SamplingParams(max_tokens=50, seed=1),
        priority=0,
        codec=TextCodec(word_level()),
        model="m",
    )


@pytest.mark.parametrize(
    ("address", "window_bytes"), [("127.0.0.1:1", 8192), ("[::1]:1", 8192), ("scheduler:1", None)]
)
async def test_little_is_read_ahead_of_a_scheduler_on_the_same_host_alone(
    address: str, window_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: asyncio.Queue[int | None] = asyncio.Queue(8)

    def refuse(_address: str, *, window_bytes: int | None) -> None:
        asked.put_nowait(window_bytes)
        raise Unavailable("nobody listens there")

    monkeypatch.setattr(scheduler_link, "open_channel", refuse)
    link = asyncio.create_task(SchedulerLink(address, "test", lambda _link: None).run())
    try:
        assert await asyncio.wait_for(asked.get(), _WITHIN_S) == window_bytes
    finally:
        link.cancel()


async def test_request_that_was_resumed_meanwhile_is_not_retried_as_well() -> None:
    played = _PlayedScheduler()
    async with _linked(played) as (router, _links):
        router.route("m").submit(_request())
        admission = await played.admission()
        played.refuse(admission.handle, retry_after_ms=400)
        played.end_stream()
        await played.admission()
        # The retry that the refusal asked for would fall due now.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(played.submitted.get(), 0.8)


async def test_refused_request_is_handed_in_again_after_its_delay() -> None:
    played = _PlayedScheduler()
    async with _linked(played) as (router, _links):
        router.route("m").submit(_request())
        for _ in range(2):
            played.refuse((await played.admission()).handle, retry_after_ms=100)
        assert (await played.admission()).request_id == "one"


async def test_refusal_that_is_said_twice_is_answered_once() -> None:
    played = _PlayedScheduler()
    async with _linked(played) as (router, _links):
        router.route("m").submit(_request())
        handle = (await played.admission()).handle
        for _ in range(2):
            played.refuse(handle, retry_after_ms=100)
        assert (await played.admission()).handle == handle
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(played.submitted.get(), 0.3)


async def test_request_resumes_with_the_tokens_it_has() -> None:
    played = _PlayedScheduler()
    async with _linked(played) as (router, _links):
        stream = _request()
        router.route("m").submit(stream)
        played.bring((await played.admission()).handle, 0, [7, 8])
        response = await asyncio.wait_for(stream.next_response(), _WITHIN_S)
        assert response is not None and list(response.outputs[0].token_ids) == [7, 8]
        played.end_stream()
        (resumed,) = (await played.admission()).resumed
        assert list(resumed.token_ids) == [7, 8]


async def test_request_turned_away_by_a_draining_scheduler_goes_to_another() -> None:
    draining, other = _PlayedScheduler(), _PlayedScheduler()
    async with _linked(draining, other) as (_router, links):
        links[0].submit(_request())
        admission = await draining.admission()
        draining.drain()
        draining.refuse(admission.handle, retry_after_ms=1000)
        assert (await other.admission()).request_id == "one"
        assert (links[0].num_live, links[1].num_live) == (0, 1)


async def test_request_turned_away_by_the_only_scheduler_that_drains_fails_with_a_delay() -> None:
    played = _PlayedScheduler()
    async with _linked(played) as (router, links):
        stream = _request()
        router.route("m").submit(stream)
        admission = await played.admission()
        played.drain()
        played.refuse(admission.handle, retry_after_ms=1000)
        with pytest.raises(Unavailable) as refused:
            await asyncio.wait_for(stream.next_response(), _WITHIN_S)
        assert refused.value.retry_after_ms == 1000
        assert links[0].num_live == 0
        with pytest.raises(Unavailable, match="every scheduler that serves it is draining") as refused:
            router.route("m")
        assert refused.value.retry_after_ms > 0


async def test_requests_of_a_lost_scheduler_go_on_at_another() -> None:
    lost, other = _PlayedScheduler(), _PlayedScheduler()
    async with _linked(lost, other) as (_router, links):
        stream = _request()
        links[0].submit(stream)
        lost.bring((await lost.admission()).handle, 0, [7, 8])
        await asyncio.wait_for(stream.next_response(), _WITHIN_S)
        lost.end_stream()
        (resumed,) = (await other.admission()).resumed
        assert list(resumed.token_ids) == [7, 8]
        assert (links[0].num_live, links[1].num_live) == (0, 1)
