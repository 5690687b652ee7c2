"""The columnar link: welcome, resumed requests, deadlines, refusals as rows, and another protocol version."""

import asyncio
import random
from collections.abc import AsyncIterator

import grpc
import pytest

from quire.v1 import sampling_pb2, scheduler_pb2
from quire.wire import PROTOCOL_VERSION
from tests.doubles.echo_worker import EchoWorker
from tests.scheduler.stack import Stack, running_stack, truth


class _Link:
    """One attached peer."""

    def __init__(self, stack: Stack, protocol_version: int = PROTOCOL_VERSION) -> None:
        hello = scheduler_pb2.AttachHello(protocol_version=protocol_version, peer_id="test")
        self._upwards: asyncio.Queue[scheduler_pb2.AttachRequest] = asyncio.Queue(8)
        self._upwards.put_nowait(scheduler_pb2.AttachRequest(hello=hello))
        self.call = stack.stub.Attach(self._requests())

    def submit(self, *admissions: scheduler_pb2.Admission) -> None:
        submit = scheduler_pb2.SubmitFrame(admissions=admissions)
        self._upwards.put_nowait(scheduler_pb2.AttachRequest(submit=submit))

    async def frames_until_end(self) -> list[scheduler_pb2.TokenFrame]:
        """Token frames up to the first that ends a sequence or fails a request."""
        frames: list[scheduler_pb2.TokenFrame] = []
        async for message in self.call:
            if message.WhichOneof("frame") == "tokens":
                frames.append(message.tokens)
                if message.tokens.finished_rows or message.tokens.errors:
                    return frames
        raise AssertionError("the stream ended first")

    async def _requests(self) -> AsyncIterator[scheduler_pb2.AttachRequest]:
        while True:
            yield await self._upwards.get()


def _admission(prompt: list[int], max_tokens: int, handle: int = 9) -> scheduler_pb2.Admission:
    return scheduler_pb2.Admission(
        handle=handle,
        request_id=f"request {handle}",
        prompt_token_ids=prompt,
        sampling_params=sampling_pb2.SamplingParams(n=1, seed=7, max_tokens=max_tokens),
    )


async def test_resumed_request_goes_on_where_it_was() -> None:
    prompt, all_tokens = [4, 5, 6], truth([4, 5, 6], 60)
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        link = _Link(stack)
        admission = _admission(prompt, 60)
        admission.resumed.add(index=0, token_ids=all_tokens[:25])
        link.submit(admission)
        frames = await asyncio.wait_for(link.frames_until_end(), 20)
        link.call.cancel()
    at, tokens = 25, []
    for frame in frames:
        assert not frame.errors
        for first, count in zip(frame.first_token_indexes, frame.num_tokens, strict=True):
            assert first == at
            at += count
        tokens += frame.token_ids
    assert tokens == all_tokens[25:]


async def test_peer_that_reads_late_gets_every_token_in_fewer_frames_than_steps() -> None:
    prompts = {handle: [handle, 5, 6] for handle in range(1, 65)}
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc, num_blocks=64 * 32))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        link = _Link(stack)
        admissions = [_admission(prompt, 400) for prompt in prompts.values()]
        for handle, admission in zip(prompts, admissions, strict=True):
            admission.handle, admission.request_id = handle, str(handle)
        link.submit(*admissions)
        await stack.stats_when(lambda stats: stats.num_requests > 0)
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0, limit_s=60)
        tokens: dict[int, list[int]] = {handle: [] for handle in prompts}
        num_frames = num_ended = 0
        async for message in link.call:
            frame = message.tokens
            num_frames += message.WhichOneof("frame") == "tokens"
            _receive(frame, tokens)
            num_ended += len(frame.finished_rows)
            if num_ended == len(prompts):
                break
        link.call.cancel()
    assert tokens == {handle: truth(prompt, 400) for handle, prompt in prompts.items()}
    assert num_frames < stats.num_steps


async def test_frames_delayed_in_both_directions_never_change_a_text() -> None:
    """The link keeps frames in order, so delay is all that a network can do to it short of ending it."""
    chance = random.Random(5)
    texts = {handle: truth([handle, 4, 5], 80) for handle in range(1, 7)}
    received: dict[int, list[int]] = {handle: [] for handle in texts}
    num_ended = 0
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc, steps_per_s=500))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        link = _Link(stack)
        unsent = list(texts)
        async for message in link.call:
            if unsent:
                link.submit(_admission([unsent[0], 4, 5], 80, handle=unsent.pop(0)))
            await asyncio.sleep(chance.choice((0.0, 0.0, 0.05)))
            assert not message.tokens.errors
            num_ended += len(message.tokens.finished_rows)
            _receive(message.tokens, received)
            if num_ended == len(texts):
                break
        link.call.cancel()
    assert received == texts


def _receive(frame: scheduler_pb2.TokenFrame, received: dict[int, list[int]]) -> None:
    at = 0
    for handle, first, count in zip(frame.handles, frame.first_token_indexes, frame.num_tokens, strict=True):
        assert first == len(received[handle]), "a token was repeated or is missing"
        received[handle] += frame.token_ids[at : at + count]
        at += count


async def test_refusal_is_a_row_and_the_stream_lives_on() -> None:
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        link = _Link(stack)
        link.submit(_admission([1000], 5))
        (refusal,) = (await asyncio.wait_for(link.frames_until_end(), 20))[-1].errors
        assert (refusal.handle, refusal.code, refusal.field) == (9, 3, "prompt")
        link.submit(_admission([1], 5))
        frames = await asyncio.wait_for(link.frames_until_end(), 20)
        assert [token for frame in frames for token in frame.token_ids] == truth([1], 5)
        link.call.cancel()


async def test_deadline_ends_a_request_that_waits_for_a_worker() -> None:
    async with running_stack("--heartbeat-interval-ms", "100", "--liveness-timeout-ms", "300") as stack:
        worker = EchoWorker(stack.grpc)
        stack.start(worker)
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        worker.silent = True
        await stack.stats_when(lambda stats: stats.num_worker_groups == 0)
        link = _Link(stack)
        admission = _admission([1], 5)
        admission.deadline_ms = 100
        link.submit(admission)
        (failure,) = (await asyncio.wait_for(link.frames_until_end(), 20))[-1].errors
        assert failure.code == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        link.call.cancel()


async def test_detached_peer_leaves_nothing_behind() -> None:
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        link = _Link(stack)
        link.submit(_admission([1], 500))
        await stack.stats_when(lambda stats: stats.num_generated_tokens > 0)
        link.call.cancel()
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0)
        assert stats.num_used_blocks == 0


async def test_newer_stream_of_a_peer_takes_over_the_requests_of_one_that_only_it_knows_to_be_lost() -> None:
    prompt, all_tokens = [4, 5, 6], truth([4, 5, 6], 400)
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc, steps_per_s=100))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        older = _Link(stack)
        older.submit(_admission(prompt, 400))
        await stack.stats_when(lambda stats: stats.num_generated_tokens > 5)
        newer = _Link(stack)
        admission = _admission(prompt, 400)
        admission.resumed.add(index=0, token_ids=all_tokens[:395])
        newer.submit(admission)
        frames = await asyncio.wait_for(newer.frames_until_end(), 20)
        assert not any(frame.errors for frame in frames)
        assert [token for frame in frames for token in frame.token_ids] == all_tokens[395:]
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await asyncio.wait_for(older.frames_until_end(), 20)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0)
        assert stats.num_used_blocks == 0
        newer.call.cancel()


async def test_peer_of_another_protocol_version_is_refused() -> None:
    async with running_stack() as stack:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await _Link(stack, protocol_version=99).call.read()
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "99" in (refusal.value.details() or "")
