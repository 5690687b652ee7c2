"""Beam search through real front door and scheduler: whole beams at the end, in whatever is lost on the way."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from quire_scheduler.core import BeamParams
from quire_scheduler.core.beam_search import Hypothesis

from quire.beam_search_params import BeamSearchParams
from quire.rpc.status import error_from_rpc
from quire.v1 import generation_pb2, scheduler_pb2
from tests.doubles.echo_worker import VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_beams
from tests.tokenizer.families import byte_level
from tests.tokenizer.stack import Client, Scheduler, Service, echoing, request_of, scheduler, tokenizer

_PROMPT = [5, 6, 7, 8, 9] * 10
_WIDTH = 4
_MAX_TOKENS = 40
_ECHO = ("--served-model-name", "echo")


@dataclass(frozen=True)
class _Stack:
    scheduler: Service
    front: Service


@pytest.fixture(scope="module")
def stack() -> Iterator[_Stack]:
    with scheduler() as owner, tokenizer(owner.address, *_ECHO) as front:
        yield _Stack(owner, front)


def _request(**params: object) -> generation_pb2.GenerateRequest:
    values = {"beam_width": _WIDTH, "max_tokens": _MAX_TOKENS} | params
    beams = BeamSearchParams(**values)  # type: ignore[arg-type]
    request = generation_pb2.GenerateRequest(beam_search_params=beams.to_proto())
    request.token_ids.ids.extend(_PROMPT)
    return request


def _truth(length_penalty: float = 1.0) -> list[Hypothesis]:
    return expected_beams(
        _PROMPT,
        BeamParams(beam_width=_WIDTH, length_penalty=length_penalty),
        max_tokens=_MAX_TOKENS,
        eos=frozenset(),
        vocab_size=VOCAB_SIZE,
    )


def _check(outputs: list[generation_pb2.CompletionDelta], length_penalty: float = 1.0) -> None:
    assert [output.index for output in outputs] == list(range(_WIDTH))
    for output, want in zip(outputs, _truth(length_penalty), strict=True):
        assert list(output.token_ids) == want.token_ids
        assert output.finish_reason == generation_pb2.FINISH_REASON_LENGTH
        assert output.cumulative_logprob == pytest.approx(want.cumulative_logprob)
        assert output.score == pytest.approx(want.score)


async def test_beams_come_whole_and_best_first(stack: _Stack) -> None:
    async with echoing(EchoWorker(stack.scheduler.address)), Client(stack.front.address) as client:
        await client.until_ready()
        (response,) = [each async for each in client.stub.Generate(_request(length_penalty=0.5))]
    _check(list(response.outputs), length_penalty=0.5)
    for output in response.outputs:
        assert output.text == byte_level().decode(list(output.token_ids), skip_special_tokens=True)
    assert response.usage.prompt_tokens == len(_PROMPT)
    assert response.usage.completion_tokens == _WIDTH * _MAX_TOKENS


async def test_scheduler_serves_beams_to_clients_with_token_ids(stack: _Stack) -> None:
    async with echoing(EchoWorker(stack.scheduler.address)), Scheduler(stack.scheduler.address) as owner:
        await owner.seconds_until(lambda stats: stats.num_worker_groups > 0)
        request = scheduler_pb2.SchedulerServiceGenerateRequest(
            prompt_token_ids=_PROMPT, beam_search_params=_request().beam_search_params
        )
        (response,) = [each async for each in owner.stub.Generate(request)]
    _check(sorted(response.outputs, key=lambda output: output.index))


async def test_beams_are_seen_as_sequences_and_go_with_their_client(stack: _Stack) -> None:
    worker = EchoWorker(stack.scheduler.address, steps_per_s=50)
    async with (
        echoing(worker),
        Client(stack.front.address) as client,
        Scheduler(stack.scheduler.address) as owner,
    ):
        await client.until_ready()
        call = client.stub.Generate(_request(max_tokens=400))
        running = asyncio.ensure_future(call.read())
        await owner.seconds_until(lambda stats: stats.num_running_beams == stats.num_running == _WIDTH)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await owner.seconds_until(lambda stats: stats.num_running == stats.num_used_blocks == 0)


async def test_search_that_loses_frames_finds_the_same_beams(stack: _Stack) -> None:
    """Each loss is found and the group reset; the search starts over."""
    lost = iter([False] * 10 + [True] + [False] * 25 + [True])

    def fate(_side: str) -> tuple[float, ...]:
        return () if next(lost, False) else (0.0,)

    worker = EchoWorker(stack.scheduler.address, fate=fate)
    async with (
        echoing(worker),
        Client(stack.front.address) as client,
        Scheduler(stack.scheduler.address) as owner,
    ):
        await client.until_ready()
        before = (await owner.stats()).num_group_resets
        output = await asyncio.wait_for(client.generate(_request()), 60)
        assert (await owner.stats()).num_group_resets > before
    _check(list(output.last.outputs))


async def test_search_whose_scheduler_is_killed_is_found_by_another() -> None:
    with (
        scheduler() as one,
        scheduler() as two,
        tokenizer(f"{one.address},{two.address}", *_ECHO) as front,
    ):
        first, second = EchoWorker(one.address, steps_per_s=50), EchoWorker(two.address)
        async with Client(front.address) as client, Scheduler(one.address) as owner:
            async with echoing(first):
                await client.until_ready()
                running = asyncio.ensure_future(client.generate(_request()))
                await owner.seconds_until(lambda stats: stats.num_running_beams == _WIDTH)
                one.kill()
            async with echoing(second):
                output = await asyncio.wait_for(running, 60)
    _check(list(output.last.outputs))


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("beam_width", {"beam_width": 65}),
        ("beam_width", {"beam_width": 0}),
        ("max_tokens", {"max_tokens": 0}),
        ("temperature", {"temperature": float("nan")}),
        ("length_penalty", {"length_penalty": float("inf")}),
        ("early_stopping", {"early_stopping": 9}),
    ],
)
async def test_parameter_that_breaks_a_rule_is_named(
    stack: _Stack, field: str, params: dict[str, float]
) -> None:
    request = _request()
    for name, value in params.items():
        setattr(request.beam_search_params, name, value)
    assert await _refused_field(stack, request) == field


async def test_width_must_be_said_and_nothing_drawn(stack: _Stack) -> None:
    request = _request()
    request.beam_search_params.ClearField("beam_width")
    assert await _refused_field(stack, request) == "beam_width"
    request = _request()
    request.sampling_params.CopyFrom(request_of([1], temperature=0.5).sampling_params)
    assert await _refused_field(stack, request) == "sampling_params"


async def _refused_field(stack: _Stack, request: generation_pb2.GenerateRequest) -> str:
    async with echoing(EchoWorker(stack.scheduler.address)), Client(stack.front.address) as client:
        await client.until_ready()
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.Generate(request).read()
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    return error_from_rpc(refused.value).field
