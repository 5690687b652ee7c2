"""Malformed and boundary requests over HTTP and gRPC at once, beside good ones, against a stack of real processes.

No answer is a server's fault, no call hangs, no process dies, no block leaks, and the good requests bring what they bring
alone. QUIRE_NUM_FUZZ_REQUESTS says how many are sent (`make fuzz`: 20,000), QUIRE_FUZZ_SEED from which seed.
"""

import asyncio
import collections
import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from quire.client.http_stream import HttpClient
from tests.fuzz.grpc_case import GrpcCase, GrpcCases
from tests.fuzz.http_case import HttpCase, HttpCases
from tests.tokenizer.stack import (
    Client,
    Output,
    Scheduler,
    Service,
    request_of,
    scheduler,
    service,
    tokenizer,
)

NUM_REQUESTS = int(os.environ.get("QUIRE_NUM_FUZZ_REQUESTS", "400"))
SEED = int(os.environ.get("QUIRE_FUZZ_SEED", "1"))
MODEL = "quire-shakespeare"
NUM_AT_ONCE = 12
STUCK_AFTER_S = 60.0
_NUM_TOKENS = 60
_GOOD = request_of("ROMEO:\n", seed=11, temperature=0.8, max_tokens=_NUM_TOKENS, ignore_eos=True)
_GOOD_BODY = {
    "prompt": "ROMEO:\n",
    "seed": 11,
    "temperature": 0.8,
    "max_tokens": _NUM_TOKENS,
    "ignore_eos": True,
    "stream": True,
    "top_p": 1,
    "top_k": 0,
}
_FAULTS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.ABORTED,
}
_SERVER_FAULT = re.compile(rb'"code":\s*"?5\d\d')


@dataclass(frozen=True)
class _Stack:
    owner: Service
    front: Service

    @property
    def host(self) -> str:
        return self.front.facts["http"].removeprefix("http://")


@dataclass
class _Tally:
    """What came back."""

    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    faults: list[str] = field(default_factory=list)
    num_good: int = 0


@pytest.fixture(scope="module")
def stack() -> Iterator[_Stack]:
    with (
        scheduler() as owner,
        service(
            "quire_worker",
            *("--grpc-port", "0", "--scheduler", owner.address, "--max-num-seqs", "16"),
            *("--max-model-len", "128", "--num-threads", "1"),
        ),
        tokenizer(owner.address, "--port", "0") as front,
    ):
        yield _Stack(owner, front)


@pytest.mark.timeout(3600)
def test_nothing_that_a_client_sends_hurts_the_server_or_a_neighbour(stack: _Stack) -> None:
    tally = asyncio.run(_fuzz(stack))
    print(
        f"\n{NUM_REQUESTS} requests from seed {SEED}, {tally.num_good} good ones beside them: {dict(tally.statuses)}"
    )
    assert not tally.faults, f"{len(tally.faults)} faults, the first: " + "\n".join(tally.faults[:5])
    assert sum(tally.statuses.values()) == NUM_REQUESTS
    assert tally.statuses["http 200"] and tally.statuses["http 400"]
    assert tally.statuses["grpc OK"] and tally.statuses["grpc INVALID_ARGUMENT"]
    assert tally.num_good >= 2


async def _fuzz(stack: _Stack) -> _Tally:
    draw = random.Random(SEED)
    tally = _Tally()
    async with (
        Client(stack.front.address) as client,
        Scheduler(stack.owner.address) as owner,
        _http_client(f"http://{stack.host}") as http,
    ):
        await client.until_ready()
        document = await http.get_json("/openapi.json")
        alone = await _good_texts(client, http)
        web = HttpCases(document, MODEL, stack.host, draw)
        rpc = GrpcCases(MODEL, draw)
        cases = [web.next() if number % 2 else rpc.next() for number in range(NUM_REQUESTS)]
        async with _good_beside(client, http, alone, tally):
            queue = iter(cases)

            async def send() -> None:
                for case in queue:
                    await _send(case, stack, client, tally)

            await asyncio.gather(*(send() for _ in range(NUM_AT_ONCE)))
        # Whatever ended, its blocks are back: only the prefix cache may hold any.
        await owner.seconds_until(lambda stats: stats.num_requests == 0 and stats.num_used_blocks == 0)
        stats = await owner.stats()
        assert (stats.num_running, stats.num_waiting) == (0, 0)
        assert stats.num_free_blocks + stats.num_cached_blocks == stats.num_total_blocks
        assert (stats.num_group_resets, stats.num_worker_groups) == (0, 1), "a worker failed"
        assert await _good_texts(client, http) == alone
    return tally


@asynccontextmanager
async def _http_client(url: str) -> AsyncIterator[HttpClient]:
    client = HttpClient(url)
    try:
        yield client
    finally:
        await client.close()


async def _send(case: HttpCase | GrpcCase, stack: _Stack, client: Client, tally: _Tally) -> None:
    """One request to its end; a fault is noted with what caused it."""
    try:
        async with asyncio.timeout(STUCK_AFTER_S):
            if isinstance(case, HttpCase):
                status, is_fault = await _ask_http(case, stack.host)
            else:
                status, is_fault = await _ask_grpc(case, client)
    except TimeoutError:
        status, is_fault = "stuck", True
    except (OSError, asyncio.IncompleteReadError) as error:
        status, is_fault = f"broken: {error!r}", True
    tally.statuses[status] += 1
    if is_fault:
        tally.faults.append(f"{status}: {case.about}")


async def _ask_http(case: HttpCase, host: str) -> tuple[str, bool]:
    name, _, port = host.rpartition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(case.raw)
        try:
            answer = await reader.read()
        except ConnectionResetError:
            # It was answered before all of it was read, and the rest met a closed door.
            return "http closed", False
    finally:
        writer.close()
    if not answer:
        return "http without an answer", True
    status = answer.split(b" ", 2)[1].decode()
    return f"http {status}", status.startswith("5") or bool(_SERVER_FAULT.search(answer))


async def _ask_grpc(case: GrpcCase, client: Client) -> tuple[str, bool]:
    try:
        if case.is_stream:
            async for _ in client.channel.unary_stream(case.method)(case.raw):
                pass
        else:
            await client.channel.unary_unary(case.method)(case.raw)
    except grpc.aio.AioRpcError as error:
        about = f": {error.details()}" if error.code() in _FAULTS else ""
        return f"grpc {error.code().name}{about}", error.code() in _FAULTS
    return "grpc OK", False


async def _good_texts(client: Client, http: HttpClient) -> tuple[str, list[int], str]:
    """What a good request brings over each door."""
    output = Output()
    async for response in client.stub.Generate(_GOOD):
        output.take(response)
    events = [
        json.loads(event) async for event in http.events("/v1/completions", json.dumps(_GOOD_BODY).encode())
    ]
    return output.text, output.token_ids, "".join(c["text"] for event in events for c in event["choices"])


@asynccontextmanager
async def _good_beside(
    client: Client, http: HttpClient, alone: tuple[str, list[int], str], tally: _Tally
) -> AsyncIterator[None]:
    """Good requests, one after another, for as long as the block lasts."""
    over = asyncio.Event()

    async def run() -> None:
        while not over.is_set():
            assert await _good_texts(client, http) == alone, "a neighbour was disturbed"
            tally.num_good += 2

    task = asyncio.create_task(run())
    try:
        yield
    finally:
        over.set()
        await task
