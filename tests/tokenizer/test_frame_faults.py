"""Attach frames that are lost or doubled, one by one and at random, between a link and a real scheduler process.

A relay stands between them and does to each frame what its fate says. Whatever that is, every request brings its own
text and its own error, and what a client has dropped is freed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence

import grpc
import pytest
from google.protobuf.message import Message
from quire_tokenizer.router import Router
from quire_tokenizer.scheduler_link import SchedulerLink
from quire_tokenizer.stream import RequestStream
from quire_tokenizer.text_codec import TextCodec

from quire.errors import InvalidRequest, QuireError
from quire.rpc.channel import open_channel
from quire.rpc.server import bind, build_server
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.doubles.echo_worker import VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_tokens
from tests.tokenizer.families import word_level
from tests.tokenizer.stack import Scheduler, echoing, scheduler

UP, DOWN = "up", "down"
LOST, DOUBLED = 0, 2
_FAULTS = {"lost": LOST, "doubled": DOUBLED}
_WITHIN_S = 30

Fate = Callable[[str, Message], int]
"""How many copies of a frame of a direction arrive."""


class _Once:
    """Strikes the first frame that meets `condition`, which is told the direction, the frame and how many of that
    direction came before it; every other frame arrives as it is.
    """

    def __init__(self, num_copies: int, condition: Callable[[str, Message, int], bool]) -> None:
        self.struck = asyncio.Event()
        self._num_copies = num_copies
        self._condition = condition
        self._num_before = {UP: 0, DOWN: 0}

    def __call__(self, direction: str, frame: Message) -> int:
        num_before = self._num_before[direction]
        self._num_before[direction] += 1
        if self.struck.is_set() or not self._condition(direction, frame, num_before):
            return 1
        self.struck.set()
        return self._num_copies


class _Relay(scheduler_pb2_grpc.SchedulerServiceServicer):
    """Passes Attach streams on to a scheduler."""

    def __init__(self, address: str, fate: Fate) -> None:
        self._address = address
        self._fate = fate

    async def Attach(
        self,
        request_iterator: AsyncIterator[scheduler_pb2.AttachRequest],
        context: "grpc.aio.ServicerContext[scheduler_pb2.AttachRequest, scheduler_pb2.AttachResponse]",
    ) -> AsyncIterator[scheduler_pb2.AttachResponse]:
        async with open_channel(self._address) as channel:
            call = scheduler_pb2_grpc.SchedulerServiceStub(channel).Attach(self._fated(UP, request_iterator))
            try:
                async for response in self._fated(DOWN, call):
                    yield response
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details() or "")

    async def _fated(self, direction: str, frames: AsyncIterator[Message]) -> AsyncIterator[Message]:
        async for frame in frames:
            for _ in range(self._fate(direction, frame)):
                yield frame


@contextlib.asynccontextmanager
async def _linked(address: str, name: str, fate: Fate) -> AsyncIterator[Router]:
    """A router whose only link passes through a relay."""
    server = build_server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(_Relay(address, fate), server)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    link = SchedulerLink(f"127.0.0.1:{port}", name, lambda _link: None)
    router = Router([link])
    task = asyncio.create_task(link.run())
    try:
        yield router
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.stop(None)


def _stream(request_id: str, prompt: Sequence[int], max_tokens: int) -> RequestStream:
    return RequestStream(
        request_id=request_id,
        tenant="",
        prompt_token_ids=list(prompt),
        params=SamplingParams(max_tokens=max_tokens, seed=7, output_kind=RequestOutputKind.DELTA),
        priority=0,
        codec=TextCodec(word_level()),
        model="echo",
    )


async def _route(router: Router, stream: RequestStream) -> SchedulerLink:
    """Hands a request in as soon as the model is served."""
    async with asyncio.timeout(_WITHIN_S):
        while True:
            with contextlib.suppress(QuireError):
                link = router.route("echo")
                break
            await asyncio.sleep(0.01)
    link.submit(stream)
    return link


async def _text_is_true(router: Router, request_id: str, prompt: Sequence[int], max_tokens: int) -> None:
    """The request brings every token once, in order, and their text."""
    stream = _stream(request_id, prompt, max_tokens)
    await _route(router, stream)
    token_ids: list[int] = []
    text = ""
    async with asyncio.timeout(_WITHIN_S):
        while (response := await stream.next_response()) is not None:
            for delta in response.outputs:
                token_ids += delta.token_ids
                text += delta.text
    expected = expected_tokens(
        list(prompt), seed=7, index=0, max_tokens=max_tokens, stops=frozenset(), vocab_size=VOCAB_SIZE
    )
    assert token_ids == expected, request_id
    assert text == word_level().decode(expected), request_id


@pytest.mark.parametrize("fault", _FAULTS)
@pytest.mark.parametrize("direction", [UP, DOWN])
async def test_text_survives_the_fault_of_any_one_frame(direction: str, fault: str) -> None:
    """Each frame from the first in turn, on a link of its own: hello, welcome, admission, tokens, the last of them."""
    num_tokens = 8
    positions = range(3) if direction == UP else range(num_tokens + 3)

    async def one(address: str, position: int) -> None:
        fate = _Once(_FAULTS[fault], lambda where, _frame, before: (where, before) == (direction, position))
        async with _linked(address, f"{direction} {position}", fate) as router:
            await _text_is_true(router, f"{fault} {position}", [position, 5, 6], num_tokens)
            await fate.struck.wait()  # by then by one of the empty frames of an idle link
            await _text_is_true(router, f"{fault} {position} again", [position, 5, 6, 7], num_tokens)

    with scheduler() as owner:
        async with echoing(EchoWorker(owner.address, steps_per_s=200)), asyncio.timeout(_WITHIN_S):
            await asyncio.gather(*(one(owner.address, position) for position in positions))


@pytest.mark.parametrize("fault", _FAULTS)
async def test_end_of_a_text_is_told_once_whatever_becomes_of_its_frame(fault: str) -> None:
    fate = _Once(
        _FAULTS[fault], lambda where, frame, _before: where == DOWN and bool(frame.tokens.finished_rows)
    )
    with scheduler() as owner:
        async with echoing(EchoWorker(owner.address)), _linked(owner.address, "link", fate) as router:
            await _text_is_true(router, "one", [4, 5], 20)
    assert fate.struck.is_set()


async def test_error_of_a_request_arrives_though_its_frame_is_lost() -> None:
    fate = _Once(LOST, lambda where, frame, _before: where == DOWN and bool(frame.tokens.errors))
    with scheduler() as owner:
        async with echoing(EchoWorker(owner.address)), _linked(owner.address, "link", fate) as router:
            stream = _stream("one", [VOCAB_SIZE], 20)
            await _route(router, stream)
            async with asyncio.timeout(_WITHIN_S):
                with pytest.raises(InvalidRequest, match="vocabulary"):
                    await stream.next_response()
    assert fate.struck.is_set()


async def test_request_of_a_client_that_left_is_freed_though_the_abort_is_lost() -> None:
    fate = _Once(LOST, lambda where, frame, _before: where == UP and bool(frame.submit.abort_handles))
    with scheduler() as owner:
        worker = EchoWorker(owner.address, steps_per_s=50)
        async with (
            echoing(worker),
            _linked(owner.address, "link", fate) as router,
            Scheduler(owner.address) as stats,
        ):
            stream = _stream("one", [4, 5], 500)
            link = await _route(router, stream)
            async with asyncio.timeout(_WITHIN_S):
                await stream.next_response()
            link.withdraw(stream)
            await stats.seconds_until(lambda now: now.num_requests == 0 and now.num_used_blocks == 0, 5.0)
            assert fate.struck.is_set()
            assert (await stats.stats()).num_generated_tokens < 400


async def test_texts_survive_faults_at_random_in_both_directions() -> None:
    chance = random.Random(11)
    num_struck = {LOST: 0, DOUBLED: 0}

    def fate(_direction: str, _frame: Message) -> int:
        num_copies = chance.choices((1, LOST, DOUBLED), (94, 3, 3))[0]
        if num_copies != 1:
            num_struck[num_copies] += 1
        return num_copies

    with scheduler() as owner:
        async with (
            echoing(EchoWorker(owner.address, steps_per_s=300)),
            _linked(owner.address, "link", fate) as router,
            asyncio.timeout(60),
        ):
            await asyncio.gather(
                *(_text_is_true(router, f"{number}", [number, 5, 6], 100) for number in range(8))
            )
    assert min(num_struck.values()) >= 3
