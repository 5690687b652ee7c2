"""Generate through real front door and scheduler: what ends a text, what is shown of it, and that the scheduler hears of it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from quire.v1 import generation_pb2
from tests.doubles.echo_worker import VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_tokens
from tests.tokenizer.families import byte_level
from tests.tokenizer.stack import Client, Scheduler, Service, echoing, request_of, scheduler, tokenizer

_PROMPT = [5, 6, 7]
_NUM_TOKENS = 40


@dataclass(frozen=True)
class _Stack:
    scheduler: Service
    front: Service


@pytest.fixture(scope="module")
def stack() -> Iterator[_Stack]:
    with scheduler() as owner, tokenizer(owner.address, "--served-model-name", "echo") as front:
        yield _Stack(owner, front)


def _truth(index: int = 0) -> list[int]:
    return expected_tokens(
        _PROMPT, seed=3, index=index, max_tokens=_NUM_TOKENS, stops=frozenset(), vocab_size=VOCAB_SIZE
    )


def _request(**params: object) -> generation_pb2.GenerateRequest:
    return request_of(_PROMPT, seed=3, max_tokens=_NUM_TOKENS, **params)


async def test_text_of_a_stop_token_is_left_out_and_its_id_is_not(stack: _Stack) -> None:
    tokens = _truth()[:10]
    stop = tokens[-1]
    assert stop not in tokens[:-1]
    async with echoing(EchoWorker(stack.scheduler.address)), Client(stack.front.address) as client:
        await client.until_ready()
        without = await client.generate(_request(stop_token_ids=[stop]))
        included = await client.generate(_request(stop_token_ids=[stop], include_stop_str_in_output=True))
    assert without.token_ids == included.token_ids == tokens
    assert without.text == byte_level().decode(tokens[:-1], skip_special_tokens=True)
    assert included.text == byte_level().decode(tokens, skip_special_tokens=True)
    assert without.text != included.text
    for output in (without, included):
        (delta,) = output.last.outputs
        assert delta.finish_reason == generation_pb2.FINISH_REASON_STOP
        assert delta.stop_token_id == stop
        assert output.last.usage.completion_tokens == len(tokens)


async def test_stop_string_that_spans_tokens_ends_the_request_at_the_scheduler_too(stack: _Stack) -> None:
    text = byte_level().decode(_truth(), skip_special_tokens=True)
    pieces = [byte_level().decode([token]) for token in _truth()]
    at = len("".join(pieces[:4])) - 2
    stop = text[at : at + 4]
    assert len(stop) == 4 and text.index(stop) == at and "\ufffd" not in text[: at + 4]
    worker = EchoWorker(stack.scheduler.address, steps_per_s=50)
    async with (
        echoing(worker),
        Client(stack.front.address) as client,
        Scheduler(stack.scheduler.address) as owner,
    ):
        await client.until_ready()
        output = await client.generate(_request(stop=[stop]))
        await owner.seconds_until(lambda now: now.num_requests == now.num_used_blocks == 0, 0.5)
    assert output.text == text[:at]
    assert output.last.outputs[0].stop_string == stop
    assert output.token_ids == _truth()[: len(output.token_ids)]
    assert output.last.usage.completion_tokens == len(output.token_ids) < _NUM_TOKENS


async def test_sequences_of_one_request_come_side_by_side_and_differ(stack: _Stack) -> None:
    tokens: dict[int, list[int]] = {index: [] for index in range(4)}
    async with echoing(EchoWorker(stack.scheduler.address)), Client(stack.front.address) as client:
        await client.until_ready()
        async with asyncio.timeout(20):
            async for response in client.stub.Generate(_request(n=4)):
                for delta in response.outputs:
                    tokens[delta.index] += delta.token_ids
                last = response
    assert tokens == {index: _truth(index) for index in range(4)}
    assert len(set(map(tuple, tokens.values()))) == 4
    assert last.usage.completion_tokens == 4 * _NUM_TOKENS


async def test_the_prompt_comes_back_as_token_ids_once_and_only_on_demand(stack: _Stack) -> None:
    worker = EchoWorker(stack.scheduler.address, steps_per_s=50)
    text = "Enter two citizens."
    async with echoing(worker), Client(stack.front.address) as client:
        await client.until_ready()
        request = request_of(text, seed=3, max_tokens=8)
        assert not [each async for each in client.stub.Generate(request) if each.prompt_token_ids]
        request.return_prompt_token_ids = True
        responses = [each async for each in client.stub.Generate(request)]
    assert list(responses[0].prompt_token_ids) == byte_level().encode(text).ids
    assert len(responses) > 1 and not [each for each in responses[1:] if each.prompt_token_ids]
