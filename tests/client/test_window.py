"""Many prompts through one client: they pass through a window, and a full queue is waited for."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from quire.async_llm_engine import AsyncStream
from quire.errors import ConfigError, Unavailable
from quire.v1 import generation_pb2, generation_pb2_grpc
from tests.doubles.echo_worker import VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_tokens
from tests.tokenizer.stack import Client, Scheduler, echoing, scheduler, tokenizer

_PARAMS = SamplingParams(seed=3, max_tokens=4, temperature=1.0, detokenize=False)


def _expected(prompt: list[int]) -> list[int]:
    return expected_tokens(prompt, seed=3, index=0, max_tokens=4, stops=frozenset(), vocab_size=VOCAB_SIZE)


async def _peak_until(done: asyncio.Event, owner: Scheduler) -> int:
    peak = 0
    while not done.is_set():
        peak = max(peak, (await owner.stats()).num_requests)
        await asyncio.sleep(0.01)
    return peak


@pytest.mark.slow
async def test_ten_thousand_prompts_come_back_in_order_and_never_fill_the_queue() -> None:
    prompts = [[1 + number % 500, 1 + number // 500] for number in range(10_000)]
    with scheduler() as owner, tokenizer(owner.address, "--served-model-name", "echo") as front:
        # Requests gather while the first step runs, however fast they are served after it.
        worker = EchoWorker(owner.address, max_num_seqs=256, first_step_s=1.0)
        async with echoing(worker), Client(front.address) as client:
            await client.until_ready()
            done = asyncio.Event()
            async with Scheduler(owner.address) as watched:
                peak = asyncio.create_task(_peak_until(done, watched))
                with LLM(address=front.address) as llm:
                    outputs = await asyncio.to_thread(llm.generate, prompts, _PARAMS, use_tqdm=False)
                done.set()
                assert 100 < await peak <= 1024
    assert [output.prompt_token_ids for output in outputs] == prompts
    assert [output.outputs[0].token_ids for output in outputs] == [_expected(prompt) for prompt in prompts]


async def test_a_full_queue_is_waited_for_by_both_doors() -> None:
    prompts = [[1 + number] for number in range(12)]
    with (
        scheduler() as owner,
        tokenizer(owner.address, "--served-model-name", "echo", "--max-num-requests", "4") as front,
    ):
        async with echoing(EchoWorker(owner.address, steps_per_s=100)), Client(front.address) as client:
            await client.until_ready()
            with LLM(address=front.address) as llm:
                outputs = await asyncio.to_thread(llm.generate, prompts, _PARAMS, use_tqdm=False)
            assert [output.outputs[0].token_ids for output in outputs] == [
                _expected(each) for each in prompts
            ]
            async with AsyncLLMEngine.from_engine_args(AsyncEngineArgs(address=front.address)) as engine:
                streams = [await engine.add_request(None, prompt, _PARAMS) for prompt in prompts]
                lasts = await asyncio.gather(*(_last_tokens(stream) for stream in streams))
            assert lasts == [_expected(prompt) for prompt in prompts]


async def _last_tokens(stream: AsyncStream) -> list[int]:
    return [output async for output in stream][-1].outputs[0].token_ids


class _KeyedService(generation_pb2_grpc.GenerationServiceServicer):
    """Says which authorization a call brought."""

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        said = dict(context.invocation_metadata()).get("authorization", "nothing")
        yield generation_pb2.GenerateResponse(
            outputs=[generation_pb2.CompletionDelta(text=said, finish_reason=1)], usage=generation_pb2.Usage()
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_keys_and_tls_reach_a_stack_behind_them(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    server = grpc.aio.server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_KeyedService(), server)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    address = f"localhost:{port}"
    try:
        args = AsyncEngineArgs(address=address, api_key="secret", tls=True, ssl_ca_certs=str(cert))
        async with AsyncLLMEngine.from_engine_args(args) as engine:
            assert [each.outputs[0].text async for each in engine.generate("x")] == ["Bearer secret"]
        for unsafe in (AsyncEngineArgs(address=address), AsyncEngineArgs(address=address, tls=True)):
            async with AsyncLLMEngine.from_engine_args(unsafe) as engine:
                with pytest.raises(Unavailable):
                    _ = [each async for each in engine.generate("x")]
        missing = AsyncEngineArgs(address=address, tls=True, ssl_ca_certs="/nowhere/ca.pem")
        async with AsyncLLMEngine.from_engine_args(missing) as engine:
            with pytest.raises(ConfigError) as refused:
                _ = [each async for each in engine.generate("x")]
            assert refused.value.field == "ssl_ca_certs"
    finally:
        await server.stop(0)
