"""Replicas, on real processes: several front doors, several schedulers, several models, and addresses that are names."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import pytest

from quire.rpc.status import error_from_rpc
from quire.v1 import generation_pb2, scheduler_pb2
from tests.doubles.echo_worker import VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_tokens
from tests.tokenizer.families import word_level
from tests.tokenizer.stack import Client, Output, Scheduler, echoing, request_of, scheduler, tokenizer

_PROMPTS = [[(7 * i + j) % VOCAB_SIZE for j in range(3 + 9 * i)] for i in range(8)]
_ECHO = ("--served-model-name", "echo")
"""The shipped tokenizer, under the name of the echo worker's model."""


def _truth(prompt: list[int], max_tokens: int) -> list[int]:
    return expected_tokens(
        prompt, seed=7, index=0, max_tokens=max_tokens, stops=frozenset(), vocab_size=VOCAB_SIZE
    )


async def _outputs(client: Client, max_tokens: int, model: str = "") -> list[Output]:
    async def one(prompt: list[int]) -> Output:
        request = request_of(prompt, seed=7, max_tokens=max_tokens)
        request.model = model
        return await client.generate(request)

    return await asyncio.wait_for(asyncio.gather(*map(one, _PROMPTS)), 60)


async def _tokens_are_true(client: Client, max_tokens: int = 40, model: str = "") -> None:
    outputs = await _outputs(client, max_tokens, model)
    assert [output.token_ids for output in outputs] == [_truth(prompt, max_tokens) for prompt in _PROMPTS]


async def _tokens_so_far(client: Client, *schedulers: Scheduler) -> list[int]:
    """How many tokens each has generated, once all of them serve: a front door hears of one after another."""
    async with asyncio.timeout(20):
        while not all(counts := [(await each.stats()).num_generated_tokens for each in schedulers]):
            await _tokens_are_true(client, 1)
    return counts


async def test_two_front_doors_share_one_scheduler() -> None:
    with (
        scheduler() as owner,
        tokenizer(owner.address, *_ECHO) as one,
        tokenizer(owner.address, *_ECHO) as two,
    ):
        async with echoing(EchoWorker(owner.address)), Client(one.address) as a, Client(two.address) as b:
            await asyncio.gather(a.until_ready(), b.until_ready())
            await asyncio.gather(_tokens_are_true(a), _tokens_are_true(b))


async def test_request_id_is_unique_whichever_front_door_it_came_through() -> None:
    with (
        scheduler() as owner,
        tokenizer(owner.address, *_ECHO) as one,
        tokenizer(owner.address, *_ECHO) as two,
    ):
        worker = EchoWorker(owner.address, steps_per_s=100)
        async with echoing(worker), Client(one.address) as a, Client(two.address) as b:
            await asyncio.gather(a.until_ready(), b.until_ready())
            request = request_of([1, 2], seed=7, max_tokens=500)
            request.request_id = "the same"
            running = a.stub.Generate(request)
            await running.read()
            for client in (a, b):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await client.stub.Generate(request).read()
                assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
                assert error_from_rpc(refused.value).field == "request_id"
            assert await running.read() is not grpc.aio.EOF
            running.cancel()


async def test_killed_front_door_takes_only_its_own_streams_along() -> None:
    with (
        scheduler() as owner,
        tokenizer(owner.address, *_ECHO) as one,
        tokenizer(owner.address, *_ECHO) as two,
    ):
        worker = EchoWorker(owner.address, steps_per_s=200)
        async with (
            echoing(worker),
            Client(one.address) as a,
            Client(two.address) as b,
            Scheduler(owner.address) as stats,
        ):
            await asyncio.gather(a.until_ready(), b.until_ready())
            lost = asyncio.create_task(_outputs(a, 400))
            kept = asyncio.create_task(_tokens_are_true(b, 300))
            await stats.seconds_until(lambda now: now.num_running == 16 and now.num_generated_tokens > 100)
            one.kill()
            with pytest.raises(grpc.aio.AioRpcError):
                await lost
            await stats.seconds_until(lambda now: now.num_requests == 8)
            await kept


async def test_one_front_door_serves_the_models_of_two_schedulers(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    word_level().save(str(words / "tokenizer.json"))
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        workers = EchoWorker(a.address), EchoWorker(b.address, model=str(words))
        async with echoing(*workers), Client(front.address) as client, Scheduler(b.address) as owner:
            await client.until_ready("echo", "words")
            await _tokens_are_true(client, model="echo")
            assert (await owner.stats()).num_generated_tokens == 0
            await _tokens_are_true(client, model="words")
            assert (await owner.stats()).num_generated_tokens == 40 * len(_PROMPTS)
            # Text goes through the tokenizer of its own model, in and out.
            request = request_of("w5 w6 w998", seed=7, max_tokens=9)
            request.model = "words"
            output = await client.generate(request)
            expected = _truth([6, 7, 999], 9)
            assert output.token_ids == expected
            assert output.text == word_level().decode(expected)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.generate(request_of("w5"))
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
            assert refused.value.details() == "model='': several are served, name one of echo, words"


async def test_scheduler_found_by_name_is_found_again_after_a_restart() -> None:
    with contextlib.ExitStack() as processes:
        first = processes.enter_context(scheduler())
        port = int(first.address.rpartition(":")[2])
        front = processes.enter_context(tokenizer(f"dns:///localhost:{port}", *_ECHO))
        async with Client(front.address) as client:
            async with echoing(EchoWorker(first.address, steps_per_s=100)):
                await client.until_ready()
                running = asyncio.create_task(_tokens_are_true(client, 100))
                async with Scheduler(first.address) as owner:
                    await owner.seconds_until(lambda now: now.num_generated_tokens > 200)
                first.kill()
            second = processes.enter_context(scheduler(port=port))
            async with echoing(EchoWorker(second.address)):
                await running
                await _tokens_are_true(client)


async def test_streams_of_a_killed_scheduler_go_on_at_another() -> None:
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        workers = [EchoWorker(owner.address, steps_per_s=100) for owner in (a, b)]
        async with (
            echoing(*workers),
            Client(front.address) as client,
            Scheduler(a.address) as first,
            Scheduler(b.address) as second,
        ):
            await client.until_ready()
            of_first, of_second = await _tokens_so_far(client, first, second)
            running = asyncio.create_task(_tokens_are_true(client, 100))
            await first.seconds_until(lambda now: now.num_generated_tokens > of_first + 40)
            await second.seconds_until(lambda now: now.num_generated_tokens > of_second + 40)
            a.kill()
            await running


async def test_streams_that_wait_for_a_lost_scheduler_go_on_at_the_next_that_can_serve() -> None:
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        async with (
            echoing(EchoWorker(a.address, steps_per_s=100)),
            Client(front.address) as client,
            Scheduler(a.address) as first,
        ):
            await client.until_ready()
            running = asyncio.create_task(_tokens_are_true(client, 100))
            await first.seconds_until(lambda now: now.num_generated_tokens > 40)
            a.kill()
            await client.until_not_ready()
            assert not running.done()
            async with echoing(EchoWorker(b.address)):
                await running


@pytest.mark.slow
async def test_streams_of_a_silent_scheduler_go_on_at_another_within_thirty_seconds() -> None:
    """A stopped process: the connection stands, and nobody answers."""
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        async with (
            echoing(EchoWorker(a.address, steps_per_s=100), EchoWorker(b.address, steps_per_s=100)),
            Client(front.address) as client,
            Scheduler(a.address) as first,
            Scheduler(b.address) as second,
        ):
            await client.until_ready()
            of_first, _ = await _tokens_so_far(client, first, second)
            running = asyncio.create_task(_tokens_are_true(client, 100))
            await first.seconds_until(lambda now: now.num_generated_tokens > of_first + 40)
            a.pause()
            await asyncio.wait_for(running, 30)
            a.resume()


async def test_draining_scheduler_hands_over_to_another_and_the_last_one_says_unavailable() -> None:
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        workers = EchoWorker(a.address, steps_per_s=100), EchoWorker(b.address, steps_per_s=100)
        async with (
            echoing(*workers),
            Client(front.address) as client,
            Scheduler(a.address) as first,
            Scheduler(b.address) as second,
        ):
            await client.until_ready()
            of_first, _ = await _tokens_so_far(client, first, second)
            running = asyncio.create_task(_tokens_are_true(client, 100))
            await first.seconds_until(lambda now: now.num_generated_tokens > of_first + 20)
            await first.stub.Drain(scheduler_pb2.DrainRequest(timeout_ms=1))
            before = (await second.stats()).num_generated_tokens
            await _tokens_are_true(client)
            assert (await second.stats()).num_generated_tokens >= before + 40 * len(_PROMPTS)
            await running
            await second.stub.Drain(scheduler_pb2.DrainRequest(timeout_ms=1))
            refusals = [await _refusal(client) for _ in range(3)]
    assert {refusal.code() for refusal in refusals} == {grpc.StatusCode.UNAVAILABLE}
    assert refusals[-1].details() == "model='echo': every scheduler that serves it is draining"
    assert error_from_rpc(refusals[-1]).retry_after_ms == 1000


async def _refusal(client: Client) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.Generate(generation_pb2.GenerateRequest(text="Hi", model="echo"), timeout=20).read()
    return refused.value
