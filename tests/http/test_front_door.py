"""What stands around the HTTP routes: keys, TLS, limits, middleware, models, and clients that go away."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from quire.v1 import generation_pb2, generation_pb2_grpc
from tests.doubles.echo_worker import MAX_MODEL_LEN, VOCAB_SIZE, EchoWorker
from tests.doubles.simulated_worker import expected_tokens
from tests.tokenizer.families import word_level
from tests.tokenizer.stack import Client, Scheduler, Service, echoing, scheduler, tokenizer

_ECHO = ("--served-model-name", "echo")
_LONG = {"prompt": [5, 6, 7], "max_tokens": 400, "ignore_eos": True, "stream": True}


@dataclass(frozen=True)
class _Stack:
    scheduler: Service
    front: Service


@pytest.fixture(scope="module")
def stack() -> Iterator[_Stack]:
    limits = ("--max-message-bytes", "20000", "--max-header-bytes", "4000", "--max-json-depth", "8")
    counts = ("--max-num-prompts", "4", "--max-num-requests", "6")
    with scheduler() as owner, tokenizer(owner.address, *_ECHO, *limits, *counts) as front:
        yield _Stack(owner, front)


@pytest.fixture
async def http(stack: _Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=stack.front.http_url, timeout=20) as client:
        yield client


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, trustme.CA]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    return chain, key, authority


def _truth(prompt: list[int], max_tokens: int) -> list[int]:
    return expected_tokens(
        prompt, seed=7, index=0, max_tokens=max_tokens, stops=frozenset(), vocab_size=VOCAB_SIZE
    )


async def test_a_key_is_asked_for_over_http_and_grpc_alike(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# who may call\nsecret-a acme\nsecret-b\n")
    flags = ("--api-key", "one,two", "--api-key", "three", "--api-key-file", str(file))
    with scheduler() as owner, tokenizer(owner.address, *_ECHO, *flags) as front:
        async with httpx.AsyncClient(base_url=front.http_url) as http:
            for path in ("/v1/models", "/version", "/docs", "/openapi.json", "/nothing"):
                assert (await http.get(path)).status_code == 401
            assert (await http.post("/v1/completions", json={"prompt": "a"})).status_code == 401
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/ready")).status_code == 503
            for header in ("Basic one", "Bearer on", "Bearer", "one", "Bearer öne"):
                refused = await http.get("/v1/models", headers=[(b"authorization", header.encode())])
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
                assert refused.headers["www-authenticate"] == "Bearer"
            for key in ("one", "two", "three", "secret-a", "secret-b"):
                answer = await http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
                assert answer.status_code == 200
        async with grpc.aio.insecure_channel(front.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            for metadata in ((), (("authorization", "Bearer four"),)):
                with pytest.raises(grpc.aio.AioRpcError) as refused_call:
                    await stub.ListModels(generation_pb2.ListModelsRequest(), metadata=metadata)
                assert refused_call.value.code() is grpc.StatusCode.UNAUTHENTICATED
                with pytest.raises(grpc.aio.AioRpcError) as refused_call:
                    await stub.Generate(generation_pb2.GenerateRequest(text="a"), metadata=metadata).read()
                assert refused_call.value.code() is grpc.StatusCode.UNAUTHENTICATED
            reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            with pytest.raises(grpc.aio.AioRpcError) as refused_call:
                await reflection.ServerReflectionInfo(iter([request])).read()
            assert refused_call.value.code() is grpc.StatusCode.UNAUTHENTICATED
            health = health_pb2_grpc.HealthStub(channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            metadata = (("authorization", "Bearer two"),)
            await stub.ListModels(generation_pb2.ListModelsRequest(), metadata=metadata)


async def test_a_key_fixes_the_tenant_and_request_ids_are_its_own(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("a acme\nb acme\nc other\n")
    with scheduler() as owner, tokenizer(owner.address, *_ECHO, "--api-key-file", str(file)) as front:
        worker = EchoWorker(owner.address, steps_per_s=50)
        async with (
            echoing(worker),
            httpx.AsyncClient(base_url=front.http_url, timeout=20) as http,
            grpc.aio.insecure_channel(front.address) as channel,
        ):
            await _until_ready(http)
            body = {**_LONG, "request_id": "same"}
            headers = {key: {"authorization": f"Bearer {key}"} for key in "abc"}
            async with http.stream("POST", "/v1/completions", json=body, headers=headers["a"]) as running:
                lines = running.aiter_lines()
                assert (await anext(lines)).startswith("data: ")
                refused = await http.post("/v1/completions", json=body, headers=headers["b"])
                assert refused.status_code == 409
                # A tenant that the client names is not believed where the key fixes it.
                stub = generation_pb2_grpc.GenerationServiceStub(channel)
                request = generation_pb2.GenerateRequest(text="a", request_id="same", tenant="other")
                with pytest.raises(grpc.aio.AioRpcError) as exists:
                    await stub.Generate(request, metadata=(("authorization", "Bearer b"),)).read()
                assert exists.value.code() is grpc.StatusCode.ALREADY_EXISTS
                body |= {"stream": False, "max_tokens": 2}
                assert (
                    await http.post("/v1/completions", json=body, headers=headers["c"])
                ).status_code == 200


async def test_answers_are_those_of_the_engine(stack: _Stack, http: httpx.AsyncClient) -> None:
    async with echoing(EchoWorker(stack.scheduler.address)):
        await _until_ready(http)
        body = {"prompt": [[1, 2], [3, 4, 5]], "seed": 7, "max_tokens": 20, "return_token_ids": True}
        answer = (await http.post("/v1/completions", json=body)).json()
    assert [choice["token_ids"] for choice in answer["choices"]] == [
        _truth([1, 2], 20),
        _truth([3, 4, 5], 20),
    ]
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[1, 2], [3, 4, 5]]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_goes_away_frees_its_blocks(
    stack: _Stack, http: httpx.AsyncClient, streams: bool
) -> None:
    async with (
        echoing(EchoWorker(stack.scheduler.address, steps_per_s=20)),
        Scheduler(stack.scheduler.address) as owner,
    ):
        await _until_ready(http)
        body = {**_LONG, "stream": streams, "n": 2}
        running = asyncio.create_task(http.post("/v1/completions", json=body))
        await owner.seconds_until(lambda now: now.num_running == 2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await owner.seconds_until(lambda now: now.num_requests == now.num_used_blocks == 0, 2.0)


async def test_a_batch_is_admitted_whole_or_not_at_all(stack: _Stack, http: httpx.AsyncClient) -> None:
    async with (
        echoing(EchoWorker(stack.scheduler.address, steps_per_s=20)),
        Scheduler(stack.scheduler.address) as owner,
    ):
        await _until_ready(http)
        one_is_bad = {**_LONG, "prompt": [[1], [2], [VOCAB_SIZE]]}
        assert (await http.post("/v1/completions", json=one_is_bad)).status_code == 400
        too_many = await http.post("/v1/completions", json={**_LONG, "prompt": [[1]] * 5})
        assert too_many.status_code == 400
        assert "prompt holds 5 prompts: at most 4 are allowed" in too_many.text
        async with http.stream("POST", "/v1/completions", json={**_LONG, "prompt": [[1]] * 4}) as running:
            lines = running.aiter_lines()
            await anext(lines)
            full = await http.post("/v1/completions", json={**_LONG, "prompt": [[1]] * 3})
            assert full.status_code == 429
            assert full.headers["retry-after"] == "1"
            assert full.json()["error"]["code"] == "rate_limit_exceeded"
            assert (await owner.stats()).num_requests == 4
        await owner.seconds_until(lambda now: now.num_requests == 0, 2.0)


async def test_what_is_larger_than_the_limits_is_refused(stack: _Stack, http: httpx.AsyncClient) -> None:
    large = json.dumps({"prompt": "a" * 30000}).encode()
    declared = await http.post("/v1/completions", content=large)
    assert declared.status_code == 413
    assert declared.json()["error"]["code"] == "request_too_large"

    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(large), 1000):
            yield large[at : at + 1000]

    assert (await http.post("/v1/completions", content=chunks())).status_code == 413
    # One long header, which never completes within the limit, and many short ones.
    for headers in ({"x": "a" * 5000}, {f"x-{number}": "a" * 50 for number in range(100)}):
        refused = await http.get("/health", headers=headers)
        assert refused.status_code == 431
        assert "max_header_bytes=4000" in refused.json()["error"]["message"]
    fits = {"prompt": "a", "temperature": -1, "extra": [[[[[[["[" * 100]]]]]]]}
    deep = {**fits, "extra": [[[[[[[[1]]]]]]]]}
    assert "temperature=-1.0" in (await http.post("/v1/completions", json=fits)).text
    refused = await http.post("/v1/completions", json=deep)
    assert refused.status_code == 400
    assert "max_json_depth=8" in refused.json()["error"]["message"]
    assert (await http.post("/v1/completions", content=b"[" * 10000)).status_code == 400


async def test_an_endless_head_ends_the_connection(stack: _Stack) -> None:
    reader, writer = await _connect(stack.front)
    writer.write(b"GET /health HTTP/1.1\r\nx: ")
    answer = asyncio.create_task(reader.readline())
    num_sent = 0
    while not answer.done():
        writer.write(b"a" * 1000)
        num_sent += 1000
        await asyncio.sleep(0.001)
        assert num_sent < 1_000_000
    assert (await answer).startswith(b"HTTP/1.1 431")
    writer.close()


_HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: quire\r\ncontent-length: 100000\r\n\r\n"


@pytest.mark.parametrize(
    ("begins", "pieces"),
    [(b"GET /health HTTP/1.1\r\nx: ", b"a"), (_HEAD, b" "), (b"", b"\r\n")],
    ids=["head", "body", "blank-lines"],
)
async def test_a_client_that_sends_slowly_is_cut_off(begins: bytes, pieces: bytes) -> None:
    with tokenizer("127.0.0.1:9", *_ECHO, "--http-read-timeout-ms", "400") as front:
        reader, writer = await _connect(front)
        writer.write(begins)
        ended = asyncio.create_task(reader.read())
        async with asyncio.timeout(20):
            while not ended.done():
                writer.write(pieces)
                await asyncio.sleep(0.01)
        writer.close()
        answer = await ended
        if not begins:
            assert answer == b""
        else:
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"http_read_timeout_ms=400" in answer


async def test_a_connection_on_which_nothing_is_asked_is_closed() -> None:
    with tokenizer("127.0.0.1:9", *_ECHO, "--http-read-timeout-ms", "200") as front:
        reader, writer = await _connect(front)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()


async def test_slowness_of_the_server_is_not_the_clients() -> None:
    with scheduler() as owner, tokenizer(owner.address, *_ECHO, "--http-read-timeout-ms", "200") as front:
        async with (
            echoing(EchoWorker(owner.address, steps_per_s=50)),
            httpx.AsyncClient(base_url=front.http_url, timeout=20) as http,
        ):
            await _until_ready(http)
            reader, writer = await _connect(front)
            body = json.dumps({**_LONG, "max_tokens": 40}).encode()
            head = b"POST /v1/completions HTTP/1.1\r\nhost: quire\r\ncontent-length: %d\r\n\r\n" % len(body)
            async with asyncio.timeout(20):
                for _ in range(2):
                    # What comes after a request, as some clients add it, begins no wait that would end its answer.
                    writer.write(head + body)
                    assert await reader.readuntil(b"\r\n\r\n")
                    writer.write(b"\r\n")
                    assert (await reader.readuntil(b"data: [DONE]")).count(b"data: ") > 20
                    await reader.readuntil(b"0\r\n\r\n")
            writer.close()


async def test_a_client_that_leaves_in_the_midst_of_its_body_is_no_fault(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with tokenizer("127.0.0.1:9", *_ECHO) as front:
        _reader, writer = await _connect(front)
        writer.write(_HEAD + b"{")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        async with httpx.AsyncClient(base_url=front.http_url) as http:
            assert (await http.get("/health")).status_code == 200
    assert "Traceback" not in capfd.readouterr().err


def test_nobody_serves_is_said_as_503() -> None:
    with tokenizer("127.0.0.1:9", *_ECHO) as front:
        answer = httpx.post(f"{front.http_url}/v1/completions", json={"prompt": "a"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["message"] == "no scheduler with a worker is attached yet"


async def test_tls_with_the_servers_certificate(certificate: tuple[Path, Path, trustme.CA]) -> None:
    chain, key, authority = certificate
    with tokenizer("127.0.0.1:9", *_ECHO, "--ssl-certfile", str(chain), "--ssl-keyfile", str(key)) as front:
        assert front.http_url.startswith("https://127.0.0.1:")
        context = httpx.create_ssl_context()
        authority.configure_trust(context)
        async with httpx.AsyncClient(base_url=front.http_url, verify=context) as http:
            assert (await http.get("/health")).status_code == 200
        async with httpx.AsyncClient(base_url=front.http_url) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get("/health")


def test_routes_lie_under_a_root_path_too() -> None:
    with tokenizer("127.0.0.1:9", *_ECHO, "--root-path", "/llm", "--api-key", "k") as front:
        for prefix in ("", "/llm"):
            assert httpx.get(f"{front.http_url}{prefix}/health").status_code == 200
            assert httpx.get(f"{front.http_url}{prefix}/v1/models").status_code == 401
        document = httpx.get(f"{front.http_url}/openapi.json", headers={"authorization": "Bearer k"}).json()
        assert document["servers"] == [{"url": "/llm"}]


def test_ones_own_middleware_stands_around_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Stamp:\n"
        "    def __init__(self, app):\n"
        "        self.app = app\n"
        "    async def __call__(self, scope, receive, send):\n"
        "        async def stamped(message):\n"
        "            if message['type'] == 'http.response.start':\n"
        "                message['headers'] = [*message['headers'], (b'x-stamp', b'mine')]\n"
        "            await send(message)\n"
        "        await self.app(scope, receive, stamped)\n"
        "async def closed(request, call_next):\n"
        "    response = await call_next(request)\n"
        "    response.headers['x-closed'] = 'no'\n"
        "    return response\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with tokenizer(
        "127.0.0.1:9", *_ECHO, "--middleware", "mine:Stamp,mine:closed", "--api-key", "k"
    ) as front:
        answer = httpx.get(f"{front.http_url}/v1/models")
    assert answer.status_code == 401
    assert answer.headers["x-stamp"] == "mine"
    assert answer.headers["x-closed"] == "no"


def test_pages_of_other_origins_are_let_in_by_name_only() -> None:
    preflight = {"origin": "https://a.example", "access-control-request-method": "POST"}
    with tokenizer("127.0.0.1:9", *_ECHO) as closed:
        answer = httpx.options(f"{closed.http_url}/v1/completions", headers=preflight)
        assert "access-control-allow-origin" not in answer.headers
    flags = ("--allowed-origins", "https://a.example", "--api-key", "k")
    with tokenizer("127.0.0.1:9", *_ECHO, *flags) as opened:
        answer = httpx.options(f"{opened.http_url}/v1/completions", headers=preflight)
        assert answer.headers["access-control-allow-origin"] == "https://a.example"
        other = httpx.options(
            f"{opened.http_url}/v1/completions", headers={**preflight, "origin": "https://b.example"}
        )
        assert "access-control-allow-origin" not in other.headers


async def test_one_front_door_lists_and_serves_the_models_of_two_schedulers(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.mkdir()
    word_level().save(str(words / "tokenizer.json"))
    with scheduler() as a, scheduler() as b, tokenizer(f"{a.address},{b.address}", *_ECHO) as front:
        workers = EchoWorker(a.address), EchoWorker(b.address, model=str(words))
        async with (
            echoing(*workers),
            Client(front.address) as client,
            httpx.AsyncClient(base_url=front.http_url) as http,
        ):
            await client.until_ready("echo", "words")
            models = (await http.get("/v1/models")).json()["data"]
            assert [model["id"] for model in models] == ["echo", "words"]
            assert {model["max_model_len"] for model in models} == {MAX_MODEL_LEN}
            body = {"prompt": "w5 w6 w998", "seed": 7, "max_tokens": 9}
            answer = (await http.post("/v1/completions", json={**body, "model": "words"})).json()
            assert answer["model"] == "words"
            assert answer["choices"][0]["text"] == word_level().decode(_truth([6, 7, 999], 9))
            unnamed = await http.post("/v1/completions", json=body)
            assert unnamed.status_code == 404
            assert "name one of echo, words" in unnamed.json()["error"]["message"]


async def test_replicas_share_the_http_port() -> None:
    with contextlib.ExitStack() as processes:
        owner = processes.enter_context(scheduler())

        async def replica(*flags: str) -> Service:
            opening = tokenizer(owner.address, *_ECHO, "--reuse-port", *flags)
            return await asyncio.to_thread(processes.enter_context, opening)

        async with echoing(EchoWorker(owner.address)):
            one = await replica()
            two = await replica("--http-port", one.http_url.rpartition(":")[2])
            assert two.http_url == one.http_url
            body = {"prompt": [1, 2], "seed": 7, "max_tokens": 3, "return_token_ids": True}
            for _ in range(8):
                async with httpx.AsyncClient(base_url=one.http_url) as http:
                    answer = (await http.post("/v1/completions", json=body)).json()
                    assert answer["choices"][0]["token_ids"] == _truth([1, 2], 3)


async def test_vertex_ai_sets_port_and_routes_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/v1/endpoints/1/deployedModels/2")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/v1/endpoints/1/deployedModels/2:predict")
    with scheduler() as owner, tokenizer(owner.address, *_ECHO, "--api-key", "k") as front:
        async with (
            echoing(EchoWorker(owner.address)),
            httpx.AsyncClient(base_url=front.http_url, headers={"authorization": "Bearer k"}) as http,
        ):
            await _until_ready(http, os.environ["AIP_HEALTH_ROUTE"])
            keyless = await http.get(os.environ["AIP_HEALTH_ROUTE"], headers={"authorization": ""})
            assert keyless.status_code == 200
            one = {"prompt": [1, 2], "seed": 7, "max_tokens": 3, "return_token_ids": True}
            predict = os.environ["AIP_PREDICT_ROUTE"]
            answer = (await http.post(predict, json=one)).json()
            assert answer["choices"][0]["token_ids"] == _truth([1, 2], 3)
            many = (await http.post(predict, json={"instances": [one, {**one, "prompt": [9]}]})).json()
            assert [each["choices"][0]["token_ids"] for each in many["predictions"]] == [
                _truth([1, 2], 3),
                _truth([9], 3),
            ]
            assert (await http.post(predict, json={"instances": [one, {}]})).status_code == 400


async def _connect(front: Service) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = front.http_url.removeprefix("http://").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _until_ready(http: httpx.AsyncClient, path: str = "/ready") -> None:
    async with asyncio.timeout(20):
        while (await http.get(path)).status_code != 200:  # noqa: ASYNC110 — another process changes
            await asyncio.sleep(0.01)
