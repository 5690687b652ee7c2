"""The scheduler process against echo workers: registration, loss of frames and of workers, aborts, bad input."""

import asyncio
import random

import grpc
import pytest
import zmq
import zmq.asyncio

from quire.v1 import scheduler_pb2
from tests.doubles.echo_worker import EchoWorker
from tests.scheduler.stack import Stack, request_of, running_stack, truth

_PROMPTS = [[(7 * i + j) % 1000 for j in range(3 + 9 * i)] for i in range(8)]


async def _texts_are_true(stack: Stack, max_tokens: int = 40) -> None:
    texts = await asyncio.wait_for(
        asyncio.gather(*(stack.generate(prompt, max_tokens) for prompt in _PROMPTS)), 60
    )
    assert texts == [truth(prompt, max_tokens) for prompt in _PROMPTS]


async def test_concurrent_requests_get_their_texts_with_two_plans_in_flight() -> None:
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        await _texts_are_true(stack, 200)
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0)
        assert stats.num_used_blocks == 0
        assert stats.num_overlapped_steps > 0.95 * stats.num_steps


async def test_bytes_of_a_steady_decode_plan_do_not_depend_on_context_length() -> None:
    async with running_stack() as stack:
        worker = EchoWorker(stack.grpc)
        stack.start(worker)
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        await stack.generate([1] * 5, 400)
        steady = {
            size
            for plan, size in worker.plan_frames
            if plan.scheduled_slots and not (plan.admissions or plan.grants or plan.releases)
        }
        assert len(steady) == 1


@pytest.mark.parametrize("side", ["plan", "answer"])
@pytest.mark.parametrize(
    ("fate_of_some", "needs_resets"),
    [((), True), ((0.0, 0.0), False), ((0.02,), True), ((0.0, 0.05), False), ((0.15, 0.0), False)],
    ids=["lost", "doubled", "late", "doubled, one late", "doubled, the first very late"],
)
async def test_faults_of_frames_never_change_a_text(
    side: str, fate_of_some: tuple[float, ...], needs_resets: bool
) -> None:
    chance = random.Random(3)
    num_faults = 0

    def fate(which: str) -> tuple[float, ...]:
        nonlocal num_faults
        if which != side or chance.random() > 0.08:
            return (0.0,)
        num_faults += 1
        return fate_of_some

    async with running_stack("--heartbeat-interval-ms", "50") as stack:
        stack.start(EchoWorker(stack.grpc, fate=fate))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        await _texts_are_true(stack, 60)
        assert num_faults >= 3
        stats = await stack.stub.GetStats(scheduler_pb2.GetStatsRequest())
        assert (stats.num_group_resets > 0) == needs_resets


@pytest.mark.parametrize("side", ["plan", "answer"])
async def test_frames_in_any_order_never_change_a_text(side: str) -> None:
    """Every frame of one side takes its own time, so that most are overtaken, as long as any overtaking can happen."""
    chance = random.Random(4)

    def fate(which: str) -> tuple[float, ...]:
        return (chance.choice((0.0, 0.0, 0.0, 0.002, 0.01)),) if which == side else (0.0,)

    async with running_stack("--heartbeat-interval-ms", "50") as stack:
        stack.start(EchoWorker(stack.grpc, fate=fate))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        await _texts_are_true(stack, 30)
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0)
        assert stats.num_group_resets > 0
        assert stats.num_used_blocks == 0


async def test_requests_of_a_silent_worker_continue_on_another() -> None:
    async with running_stack("--heartbeat-interval-ms", "100", "--liveness-timeout-ms", "500") as stack:
        first = EchoWorker(stack.grpc)
        stack.start(first)
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        texts = asyncio.create_task(_texts_are_true(stack, 400))
        await stack.stats_when(lambda stats: stats.num_generated_tokens > 20)
        first.silent = True
        await stack.stats_when(lambda stats: stats.num_worker_groups == 0)
        stack.start(EchoWorker(stack.grpc))
        await texts


async def test_dropped_stream_frees_its_blocks() -> None:
    async with running_stack() as stack:
        worker = EchoWorker(stack.grpc)
        stack.start(worker)
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        call = stack.stub.Generate(request_of([1, 2, 3], 500))
        await call.read()
        call.cancel()
        stats = await stack.stats_when(lambda stats: stats.num_requests == 0, limit_s=0.5)
        assert stats.num_used_blocks == 0


async def test_garbage_on_the_data_port_disturbs_nothing() -> None:
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        context = zmq.asyncio.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.set(zmq.LINGER, 0)
        stranger.connect(stack.data)
        try:
            for frames in ([b""], [b"\xff" * 100], [b"\x00", b"x" * 7]):
                await stranger.send_multipart(frames)
            await _texts_are_true(stack)
        finally:
            stranger.close(linger=0)
            context.term()


async def test_worker_of_another_protocol_version_is_refused() -> None:
    async with running_stack() as stack:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await EchoWorker(stack.grpc, protocol_version=99).run()
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert "99" in (refusal.value.details() or "")


@pytest.mark.parametrize(
    ("field", "prompt", "sampling"),
    [
        ("prompt", [], {}),
        ("prompt", [1000], {}),
        ("prompt", [1] * 512, {}),
        ("temperature", [1], {"temperature": -1.0}),
        ("top_p", [1], {"top_p": 0.0}),
        ("n", [1], {"n": 0}),
        ("n", [1], {"n": 65}),
        ("max_tokens", [1], {"max_tokens": 0}),
        ("presence_penalty", [1], {"presence_penalty": 2.5}),
        ("frequency_penalty", [1], {"frequency_penalty": -2.5}),
        ("repetition_penalty", [1], {"repetition_penalty": 0.0}),
    ],
)
async def test_bad_input_names_the_field(field: str, prompt: list[int], sampling: dict[str, float]) -> None:
    async with running_stack() as stack:
        stack.start(EchoWorker(stack.grpc))
        await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
        request = request_of(prompt, 5)
        for name, value in sampling.items():
            setattr(request.sampling_params, name, value)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stack.stub.Generate(request).read()
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in (refusal.value.details() or "")
        stats = await stack.stub.GetStats(scheduler_pb2.GetStatsRequest())
        assert stats.num_requests == 0
