"""AsyncLLMEngine as a server uses it: many requests at once, aborted and left, against the shipped model."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import pytest

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, RequestOutput, RequestOutputKind, SamplingParams
from quire.errors import InvalidRequest, RequestExists, Unavailable
from tests.tokenizer.stack import Scheduler

_PARAMS = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
_LONG = SamplingParams(max_tokens=480, ignore_eos=True)


def _attached(llm: LLM) -> AsyncLLMEngine:
    return AsyncLLMEngine.from_engine_args(AsyncEngineArgs(address=llm.address))


async def _all(
    engine: AsyncLLMEngine, params: SamplingParams, prompt: str = "ROMEO:\n"
) -> list[RequestOutput]:
    return [output async for output in engine.generate(prompt, params)]


async def test_outputs_are_cumulative_by_default(llm: LLM) -> None:
    async with _attached(llm) as engine:
        outputs = await _all(engine, _PARAMS)
    texts = [output.outputs[0].text for output in outputs]
    assert len(texts) > 2
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    last = outputs[-1]
    assert (last.prompt, len(last.outputs[0].token_ids)) == ("ROMEO:\n", 40)
    assert last.prompt_token_ids == outputs[0].prompt_token_ids != []


async def test_deltas_and_the_final_output_say_the_same(llm: LLM) -> None:
    async with _attached(llm) as engine:
        deltas = await _all(engine, replace(_PARAMS, output_kind=RequestOutputKind.DELTA))
        (final,) = await _all(engine, replace(_PARAMS, output_kind=RequestOutputKind.FINAL_ONLY))
    assert len(deltas) > 2
    assert "".join(each.outputs[0].text for each in deltas) == final.outputs[0].text
    assert [token for each in deltas for token in each.outputs[0].token_ids] == final.outputs[0].token_ids


async def test_many_requests_stream_at_once_and_match_the_same_requests_alone(llm: LLM) -> None:
    params = [SamplingParams(seed=number, max_tokens=24, ignore_eos=True) for number in range(64)]
    alone = llm.generate(["ROMEO:\n"] * 64, params, use_tqdm=False)
    async with _attached(llm) as engine:
        streamed = await asyncio.gather(*(_all(engine, each) for each in params))
    assert [outputs[-1].outputs[0] for outputs in streamed] == [each.outputs[0] for each in alone]


async def test_a_request_that_was_added_runs_before_anybody_reads_it(llm: LLM) -> None:
    async with _attached(llm) as engine, Scheduler(llm.scheduler_address) as scheduler:
        stream = await engine.add_request("added", "ROMEO:\n", _LONG)
        await scheduler.seconds_until(lambda now: now.num_requests == 1)
        assert (stream.request_id, stream.finished) == ("added", False)
        with pytest.raises(RequestExists) as refused:
            await engine.add_request("added", "ROMEO:\n", _LONG)
        assert refused.value.field == "request_id"
        async for output in stream:
            last = output
        assert last.finished
        assert stream.finished
        again = await engine.add_request("added", "ROMEO:\n", _PARAMS)
        assert [output async for output in again][-1].finished


async def test_abort_ends_the_stream_with_that_reason_and_frees_the_blocks(llm: LLM) -> None:
    async with _attached(llm) as engine, Scheduler(llm.scheduler_address) as scheduler:
        outputs: list[RequestOutput] = []
        async for output in engine.generate("ROMEO:\n", _LONG, "to abort"):
            outputs.append(output)
            if len(outputs) == 2:
                await engine.abort(["to abort", "unknown"])
        await scheduler.seconds_until(lambda now: now.num_requests == now.num_used_blocks == 0)
    assert outputs[-1].finished
    assert outputs[-1].outputs[0].finish_reason == "abort"
    assert (
        outputs[-1].outputs[0].token_ids[: len(outputs[1].outputs[0].token_ids)]
        == outputs[1].outputs[0].token_ids
    )
    assert len(outputs[-1].outputs[0].token_ids) < 480


@pytest.mark.parametrize("how", ["break", "cancel", "drop"])
async def test_leaving_a_stream_aborts_its_request(llm: LLM, how: str) -> None:
    async with _attached(llm) as engine, Scheduler(llm.scheduler_address) as scheduler:
        if how == "break":
            async for _output in engine.generate("ROMEO:\n", _LONG):
                break
        elif how == "cancel":
            task = asyncio.create_task(_all(engine, _LONG))
            await scheduler.seconds_until(lambda now: now.num_requests == 1)
            task.cancel()
        else:
            stream = await engine.add_request(None, "ROMEO:\n", _LONG)
            await scheduler.seconds_until(lambda now: now.num_requests == 1)
            del stream
        await scheduler.seconds_until(lambda now: now.num_requests == now.num_used_blocks == 0)


async def test_errors_name_the_field_and_an_absent_stack_is_unavailable(llm: LLM) -> None:
    async with _attached(llm) as engine:
        with pytest.raises(InvalidRequest) as refused:
            await _all(engine, SamplingParams(stop_token_ids=[10**6]))
        assert refused.value.field == "stop_token_ids"
        with pytest.raises(InvalidRequest) as refused:
            await _all(engine, _PARAMS, "")
        assert refused.value.field == "text"
    async with AsyncLLMEngine.from_engine_args(AsyncEngineArgs(address="127.0.0.1:1")) as engine:
        with pytest.raises(Unavailable):
            await _all(engine, _PARAMS)
        with pytest.raises(Unavailable):
            await engine.check_health()


async def test_the_tokenizer_and_health_can_be_asked_for(llm: LLM) -> None:
    async with _attached(llm) as engine:
        await engine.check_health()
        tokenizer = await engine.get_tokenizer()
        ids = await tokenizer.encode("Enter two citizens.")
        assert await tokenizer.decode(ids) == "Enter two citizens."
        messages = [{"role": "user", "content": "Hi"}]
        text = await tokenizer.apply_chat_template(messages, tokenize=False)
        assert isinstance(text, str)
        assert "Hi" in text
        assert await tokenizer.encode(text, add_special_tokens=False) == await tokenizer.apply_chat_template(
            messages
        )


def test_an_engine_may_be_made_before_its_loop_and_used_from_one_loop_after_another(llm: LLM) -> None:
    engine = _attached(llm)
    first = asyncio.run(_all(engine, _PARAMS))[-1].outputs
    assert asyncio.run(_all(engine, _PARAMS))[-1].outputs == first
    engine.shutdown()


_PROGRAM = """
import asyncio, psutil
from quire import AsyncEngineArgs, AsyncLLMEngine, SamplingParams

async def last_text(engine):
    async for output in engine.generate("ROMEO:", SamplingParams(temperature=0, max_tokens=20)):
        pass
    return output.outputs[0].text

async def main():
    async with AsyncLLMEngine.from_engine_args(AsyncEngineArgs(max_num_seqs=4)) as engine:
        await engine.check_health()
        print(len(set(await asyncio.gather(*(last_text(engine) for _ in range(8))))))
        print(len(psutil.Process().children()))
    print(len(psutil.Process().children()))

asyncio.run(main())
"""


def test_an_engine_starts_a_stack_of_its_own_and_ends_it_without_a_complaint() -> None:
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=90, check=False
    )
    assert (run.returncode, run.stdout.split()) == (0, ["1", "3", "0"]), run.stderr
    assert "Traceback" not in run.stderr
