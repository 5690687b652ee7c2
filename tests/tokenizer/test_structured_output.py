"""Structured output through a whole stack: bad grammars are refused by name, good ones hold, whatever dies meanwhile."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import jsonschema
import pytest

from quire.rpc.status import error_from_rpc
from quire.structured_outputs import StructuredOutputsParams
from quire.v1 import generation_pb2, scheduler_pb2
from tests.tokenizer.stack import Client, Scheduler, Service, request_of, scheduler, service, tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "who": {"type": "string", "minLength": 5, "maxLength": 60},
        "verses": {
            "type": "array",
            "items": {"type": "string", "maxLength": 40},
            "minItems": 2,
            "maxItems": 3,
        },
    },
    "required": ["who", "verses"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Stack:
    """Two services that stay, and the worker's flags."""

    scheduler: Service
    front: Service

    @property
    def worker_flags(self) -> tuple[str, ...]:
        """Of a worker with the shipped model."""
        return ("--scheduler", self.scheduler.address, "--max-num-seqs", "16", "--num-threads", "1")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with scheduler() as owner, tokenizer(owner.address) as front:
        yield Stack(owner, front)


@asynccontextmanager
async def client_of(stack: Stack) -> AsyncIterator[Client]:
    async with Client(stack.front.address) as client:
        await client.until_ready()
        yield client


def constrained(*, seed: int = 1, max_tokens: int = 400, **constraint: Any) -> generation_pb2.GenerateRequest:
    return request_of(
        "ROMEO:\n",
        seed=seed,
        temperature=1.0,
        max_tokens=max_tokens,
        structured_outputs=StructuredOutputsParams(**constraint).to_proto(),
    )


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        ({"json": {"type": "nothing"}}, "Invalid type: nothing"),
        ({"json": "{"}, "EOF"),
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"regex": "(a"}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"grammar": "start: nobody"}, 'unknown name: "nobody"'),
        ({"grammar": "root ::= nobody"}, "Rule 'nobody' not found"),
    ],
    ids=lambda value: str(value)[:24],
)
async def test_a_bad_grammar_is_refused_by_name_beside_a_good_one(
    stack: Stack, constraint: dict[str, Any], reason: str
) -> None:
    good = constrained(regex="[a-z ]{8,20}")
    with service("quire_worker", *stack.worker_flags):
        async with client_of(stack) as client:
            beside = asyncio.create_task(client.generate(good))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.generate(constrained(**constraint))
            assert 8 <= len((await beside).text) <= 20
    error = error_from_rpc(caught.value)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.field == f"structured_outputs.{next(iter(constraint))}"
    assert reason in error.message


async def test_a_grammar_that_only_the_worker_can_refuse_ends_its_request_alone(stack: Stack) -> None:
    request = scheduler_pb2.SchedulerServiceGenerateRequest(prompt_token_ids=[40, 50, 60])
    request.sampling_params.CopyFrom(constrained(regex="(a").sampling_params)
    with service("quire_worker", *stack.worker_flags):
        async with client_of(stack) as client, Scheduler(stack.scheduler.address) as core:
            beside = asyncio.create_task(client.generate(constrained(regex="[a-z ]{20,30}")))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in core.stub.Generate(request):
                    pass
            assert 20 <= len((await beside).text) <= 30
            assert (await core.stats()).num_used_blocks == 0
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_from_rpc(caught.value).field == "structured_outputs"
    assert "unclosed group" in error_from_rpc(caught.value).message


async def test_json_holds_while_workers_are_killed(stack: Stack) -> None:
    requests = [constrained(seed=seed, json=SCHEMA) for seed in range(6)]
    async with Client(stack.front.address) as client:
        with service("quire_worker", *stack.worker_flags):
            await client.until_ready()
            expected = await asyncio.gather(*(client.generate(request) for request in requests))
        firsts = [asyncio.Event() for _ in requests]
        with service("quire_worker", *stack.worker_flags) as worker:
            await client.until_ready()
            streams = [
                asyncio.create_task(_text(client, request, first))
                for request, first in zip(requests, firsts, strict=True)
            ]
            await asyncio.gather(*(first.wait() for first in firsts))
            worker.kill()
        with service("quire_worker", *stack.worker_flags):
            texts = await asyncio.gather(*streams)
    assert texts == [output.text for output in expected]
    ended = [out.text for out in expected if _reason(out.last) == generation_pb2.FINISH_REASON_STOP]
    assert len(ended) >= 3
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMA)


async def _text(client: Client, request: generation_pb2.GenerateRequest, first: asyncio.Event) -> str:
    text = ""
    async for response in client.stub.Generate(request):
        text += "".join(delta.text for delta in response.outputs)
        first.set()
    return text


def _reason(response: generation_pb2.GenerateResponse) -> int:
    return response.outputs[0].finish_reason
