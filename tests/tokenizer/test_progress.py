"""Who gets on, and who is let go, through a real front door: short behind long, 64 streams, cancels, silent clients."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import grpc
import pytest

from quire.rpc import KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS
from tests.doubles.echo_worker import EchoWorker
from tests.tokenizer.stack import Client, Scheduler, Service, echoing, request_of, scheduler, tokenizer

_ABORT_LIMIT_S = 0.5
_SILENCE_LIMIT_S = 30.0
_CLIENT = """
import sys
from tests.tokenizer.stack import Client, request_of
import asyncio

async def main():
    async with Client(sys.argv[1]) as client:
        call = client.stub.Generate(request_of([1, 2, 3], max_tokens=500))
        async for _ in call:
            pass

asyncio.run(main())
"""


@contextmanager
def _processes(*scheduler_flags: str) -> Iterator[tuple[Service, Service]]:
    with (
        scheduler(*scheduler_flags) as owner,
        tokenizer(owner.address, "--served-model-name", "echo") as front,
    ):
        yield owner, front


async def test_short_request_behind_a_long_one_finishes_first() -> None:
    with _processes() as (owner, front):
        async with echoing(EchoWorker(owner.address, steps_per_s=100)), Client(front.address) as client:
            await client.until_ready()
            long = asyncio.create_task(client.generate(request_of([1] * 400, max_tokens=110)))
            async with Scheduler(owner.address) as stats:
                await stats.seconds_until(lambda now: now.num_generated_tokens > 0)
            short = await client.generate(request_of([2] * 5, max_tokens=5))
            assert len(short.token_ids) == 5
            assert not long.done()
            assert len((await long).token_ids) == 110


async def test_each_of_64_streams_gets_a_token_in_every_8_steps_while_long_prompts_arrive() -> None:
    """A budget of 96 tokens leaves 32 beside 64 running streams: each long prompt takes more than ten steps."""
    num_streams, num_tokens = 64, 300
    with _processes("--max-num-batched-tokens", "96") as (owner, front):
        worker = EchoWorker(owner.address, max_num_seqs=80, steps_per_s=200)
        async with echoing(worker), Client(front.address) as client, Scheduler(owner.address) as stats:
            await client.until_ready()
            streams = [
                asyncio.create_task(client.generate(request_of([1, number], max_tokens=num_tokens)))
                for number in range(num_streams)
            ]
            await stats.seconds_until(lambda now: now.num_running == num_streams)
            long = [
                asyncio.create_task(client.generate(request_of([number] * 400, max_tokens=2)))
                for number in range(8)
            ]
            outputs = await asyncio.gather(*streams)
            await asyncio.gather(*long)
    assert [len(output.token_ids) for output in outputs] == [num_tokens] * num_streams
    steps_of = _steps_with_a_token(worker, num_streams)
    assert sorted(steps_of) == list(range(num_streams))
    for steps in steps_of.values():
        assert len(steps) >= num_tokens
        # Tokens of steps s and s + 8 at the latest: so one falls into any 8 consecutive steps.
        assert max(b - a for a, b in pairwise(steps)) <= 8
    num_mixed = sum(max(plan.scheduled_tokens, default=0) > 2 for plan, _size in worker.plan_frames)
    assert num_mixed > 50, "the long prompts did not compete with the streams"


def _steps_with_a_token(worker: EchoWorker, num_streams: int) -> dict[int, list[int]]:
    """For each of the streams, by its number, the steps that computed its last known token: those draw one."""
    number_of_slot: dict[int, int] = {}
    steps_of: dict[int, list[int]] = {}
    for step, (plan, _size) in enumerate(worker.plan_frames):
        for slot in plan.releases:
            number_of_slot.pop(slot, None)
        for admission in plan.admissions:
            if len(admission.token_ids) == 2:
                number_of_slot[admission.slot] = admission.token_ids[1]
        for slot in plan.scheduled_slots:
            if slot in number_of_slot:
                steps_of.setdefault(number_of_slot[slot], []).append(step)
    assert len(steps_of) == num_streams
    return steps_of


async def test_cancelled_streams_free_their_blocks_at_once_and_the_others_go_on() -> None:
    with _processes() as (owner, front):
        worker = EchoWorker(owner.address, steps_per_s=100)
        async with echoing(worker), Client(front.address) as client, Scheduler(owner.address) as stats:
            await client.until_ready()
            calls = [client.stub.Generate(request_of([1, number], max_tokens=500)) for number in range(16)]
            await asyncio.gather(*(call.read() for call in calls))
            for call in calls[:8]:
                call.cancel()
            took_s = await stats.seconds_until(lambda now: now.num_requests == 8)
            print(f"8 of 16 cancelled streams were gone after {1000 * took_s:.0f} ms")
            assert took_s < _ABORT_LIMIT_S
            for call in calls[8:]:
                await call.read()
                call.cancel()
            took_s = await stats.seconds_until(
                lambda now: now.num_used_blocks == 0 and now.num_requests == 0 and now.num_running == 0
            )
            print(f"their blocks were free after {1000 * took_s:.0f} ms")
            assert took_s < _ABORT_LIMIT_S


async def test_deadline_of_the_client_ends_its_request_everywhere() -> None:
    with _processes() as (owner, front):
        worker = EchoWorker(owner.address, steps_per_s=20)
        async with echoing(worker), Client(front.address) as client, Scheduler(owner.address) as stats:
            await client.until_ready()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.generate(request_of([1, 2], max_tokens=500), timeout=0.5)
            assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            took_s = await stats.seconds_until(lambda now: now.num_requests == now.num_used_blocks == 0)
            assert took_s < _ABORT_LIMIT_S


def test_silence_is_noticed_within_thirty_seconds_by_default() -> None:
    assert KEEPALIVE_TIME_MS + KEEPALIVE_TIMEOUT_MS < 1000 * _SILENCE_LIMIT_S


@pytest.mark.slow
async def test_client_that_falls_silent_is_dropped_whether_it_is_being_sent_to_or_waits() -> None:
    """A stopped process: its kernel still takes bytes, and nobody answers. One slot: the second request waits."""
    with _processes() as (owner, front):
        worker = EchoWorker(owner.address, max_num_seqs=1, steps_per_s=10)
        async with echoing(worker), Client(front.address) as ready, Scheduler(owner.address) as stats:
            await ready.until_ready()
            clients = [
                await asyncio.create_subprocess_exec(sys.executable, "-c", _CLIENT, front.address)
                for _ in range(2)
            ]
            try:
                await stats.seconds_until(lambda now: now.num_running == 1 and now.num_waiting == 1)
                for client in clients:
                    os.kill(client.pid, signal.SIGSTOP)
                took_s = await stats.seconds_until(
                    lambda now: now.num_requests == 0 and now.num_used_blocks == 0, limit_s=_SILENCE_LIMIT_S
                )
                print(f"both were dropped after {took_s:.1f} s")
                assert took_s > 1, "they were dropped for another reason than silence"
            finally:
                for client in clients:
                    client.kill()
                    await client.wait()
