"""Bad input, through the front door of a whole stack: the status names field and rule, and a neighbour goes on as if alone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import grpc
import pytest
import zmq
import zmq.asyncio

from quire.rpc.status import error_from_rpc
from quire.v1 import generation_pb2, sampling_pb2, scheduler_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from tests.doubles.echo_worker import EchoWorker
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

_CONTEXT = 512
_VOCAB_SIZE = 1024
_MAX_MESSAGE_BYTES = 256 * 1024
_NUM_TOKENS = 120
_NEIGHBOUR = request_of("ROMEO:\n", seed=11, temperature=0.8, max_tokens=_NUM_TOKENS, ignore_eos=True)
_PROTO = generation_pb2.GenerateRequest
_STOP = sampling_pb2.SamplingParams.STOP_FIELD_NUMBER


@dataclass(frozen=True)
class _Stack:
    scheduler: Service
    front: Service


@pytest.fixture(scope="module")
def stack() -> Iterator[_Stack]:
    with (
        scheduler() as owner,
        service(
            "quire_worker",
            *("--grpc-port", "0", "--scheduler", owner.address, "--max-num-seqs", "8"),
            *("--max-model-len", str(_CONTEXT), "--num-threads", "1"),
        ),
        tokenizer(owner.address, "--max-message-bytes", str(_MAX_MESSAGE_BYTES)) as front,
    ):
        yield _Stack(owner, front)


@pytest.fixture(scope="module")
def alone(stack: _Stack) -> Output:
    async def run() -> Output:
        async with Client(stack.front.address) as client:
            await client.until_ready()
            return await client.generate(_NEIGHBOUR)

    output = asyncio.run(run())
    assert len(output.token_ids) == _NUM_TOKENS
    return output


@contextlib.asynccontextmanager
async def _undisturbed_neighbour(client: Client, alone: Output) -> AsyncIterator[None]:
    """Streams, one after another, for as long as the block lasts: each must bring what it brings alone."""
    begun, over = asyncio.Event(), asyncio.Event()

    async def run() -> None:
        while not over.is_set():
            output = Output()
            async for response in client.stub.Generate(_NEIGHBOUR):
                output.take(response)
                begun.set()
            assert (output.text, output.token_ids) == (alone.text, alone.token_ids)

    task = asyncio.create_task(run())
    await begun.wait()
    yield
    over.set()
    await task


def _wire(field: int, value: bytes) -> bytes:
    """A length-delimited field, shorter than 128 bytes."""
    return bytes([field << 3 | 2, len(value)]) + value


def _chat(*messages: tuple[str, str]) -> generation_pb2.GenerateRequest:
    chat = tokenizer_pb2.ChatPrompt(
        messages=[tokenizer_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    )
    return _PROTO(chat=chat)


def _params(**values: float) -> generation_pb2.GenerateRequest:
    return request_of("ROMEO:", **values)


_MESSAGE_OF_BAD_CONTENT = _wire(1, b"user") + _wire(2, b"a\xe4\xbd")
_INVALID = [
    ("no prompt", _PROTO(), "prompt", "prompt is missing: set one of text, token_ids and chat"),
    ("empty text", _PROTO(text=""), "text", "text is empty: a prompt has at least one character"),
    ("no token ids", request_of([]), "prompt", "prompt is empty: it needs at least one token"),
    ("no messages", _chat(), "chat.messages", "chat.messages is empty"),
    ("long text", request_of("What, ho! " * 500), "prompt", f"must have fewer than max_model_len={_CONTEXT}"),
    ("long ids", request_of([5] * _CONTEXT), "prompt", f"prompt has {_CONTEXT} tokens"),
    ("temperature", _params(temperature=-1), "temperature", "temperature=-1.0: must be at least 0"),
    (
        "temperature nan",
        _params(temperature=float("nan")),
        "temperature",
        "temperature=nan: must be at least 0",
    ),
    ("top_p", _params(top_p=0), "top_p", "top_p=0.0: must be above 0 and at most 1"),
    ("n", _params(n=0), "n", "n=0: must be at least 1"),
    ("n above slots", _params(n=9), "n", "n=9: must be at most max_num_seqs=8"),
    ("max_tokens", _params(max_tokens=0), "max_tokens", "max_tokens=0: must be at least 1"),
    (
        "unknown token",
        request_of([5, _VOCAB_SIZE]),
        "token_ids",
        f"token id {_VOCAB_SIZE}: ids must be below",
    ),
    (
        "stop token",
        request_of("ROMEO:", stop_token_ids=[_VOCAB_SIZE]),
        "stop_token_ids",
        f"must be below the vocabulary size {_VOCAB_SIZE}",
    ),
    (
        "chat role",
        _chat(("narrator", "Enter ROMEO.")),
        "chat.messages",
        "role must be one of system, user, assistant",
    ),
    ("empty role", _chat(("user", "Hi"), ("", "x")), "chat.messages[1].role", "role is empty"),
    (
        "UTF-8 in text",
        _wire(3, b"abc\xff"),
        "text",
        "text holds byte 0xff at 3: a string must be valid UTF-8",
    ),
    ("UTF-8 in model", _wire(2, b"\xc0") + _wire(3, b"a"), "model", "must be valid UTF-8"),
    (
        "UTF-8 in chat",
        _wire(5, _wire(1, _wire(1, b"user")) + _wire(1, _MESSAGE_OF_BAD_CONTENT)),
        "chat.messages[1].content",
        "byte 0xe4 at 1: a string must be valid UTF-8",
    ),
    (
        "UTF-8 in stop",
        _wire(3, b"a") + _wire(6, _wire(_STOP, b"ok") + _wire(_STOP, b"\xf0\x9f")),
        "sampling_params.stop[1]",
        "byte 0xf0 at 0: a string must be valid UTF-8",
    ),
    ("no protobuf", b"\x1a\x7fab", "", "the message is no quire.v1.GenerateRequest"),
]


def _bytes_of(request: generation_pb2.GenerateRequest | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


async def _refusal(client: Client, raw: bytes) -> grpc.aio.AioRpcError:
    """The status of a Generate call with a request of any bytes."""
    call = client.channel.unary_stream("/quire.v1.GenerationService/Generate")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in call(raw):
            pass
    return refused.value


@pytest.mark.parametrize(
    ("request_", "field", "rule"), [case[1:] for case in _INVALID], ids=[case[0] for case in _INVALID]
)
async def test_bad_input_is_refused_by_field_and_rule(
    stack: _Stack,
    alone: Output,
    request_: generation_pb2.GenerateRequest | bytes,
    field: str,
    rule: str,
) -> None:
    async with Client(stack.front.address) as client:
        async with _undisturbed_neighbour(client, alone):
            refusal = await _refusal(client, _bytes_of(request_))
        assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT, refusal.details()
        assert rule in (refusal.details() or "")
        assert error_from_rpc(refusal).field == field


async def test_unknown_model_is_not_found_and_what_is_served_is_named(stack: _Stack, alone: Output) -> None:
    async with Client(stack.front.address) as client:
        async with _undisturbed_neighbour(client, alone):
            refusal = await _refusal(client, _PROTO(model="gpt-6", text="x").SerializeToString())
        assert refusal.code() is grpc.StatusCode.NOT_FOUND
        assert refusal.details() == "model='gpt-6' is not served here; served: quire-shakespeare"
        assert error_from_rpc(refusal).field == "model"


async def test_oversized_message_is_refused_with_the_limit(stack: _Stack, alone: Output) -> None:
    async with Client(stack.front.address) as client:
        async with _undisturbed_neighbour(client, alone):
            refusal = await _refusal(client, _PROTO(text="x" * _MAX_MESSAGE_BYTES).SerializeToString())
        assert refusal.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, refusal.details()
        assert f"larger than max ({_MAX_MESSAGE_BYTES + 4} vs. {_MAX_MESSAGE_BYTES})" in (
            refusal.details() or ""
        )


async def test_unreadable_message_is_refused_by_tokenizer_service(stack: _Stack) -> None:
    async with Client(stack.front.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.channel.unary_unary("/quire.v1.TokenizerService/Tokenize")(_wire(2, b"\xed\xa0\x80"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details() == "text holds byte 0xed at 0: a string must be valid UTF-8"


async def test_detokenize_refuses_ids_outside_the_vocabulary(stack: _Stack) -> None:
    async with Client(stack.front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Detokenize(tokenizer_pb2.DetokenizeRequest(token_ids=[5, _VOCAB_SIZE]))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_from_rpc(refused.value).field == "token_ids"


async def test_garbage_on_the_data_port_disturbs_nothing(stack: _Stack, alone: Output) -> None:
    async with Client(stack.front.address) as client:
        async with _undisturbed_neighbour(client, alone):
            context = zmq.asyncio.Context()
            stranger = context.socket(zmq.DEALER)
            stranger.set(zmq.LINGER, 1000)
            stranger.connect(stack.scheduler.facts["data"])
            for frames in ([b""], [b"\xff" * 100], [b"\x00", b"x" * 7], [b""] * 50, [b"\x08\x01"]):
                await stranger.send_multipart(frames)
            stranger.close()
            context.term()
            # Not even ZeroMQ: a peer that speaks something else on the port.
            _, writer = await asyncio.open_connection(
                *stack.scheduler.facts["data"].removeprefix("tcp://").split(":")
            )
            writer.write(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)))
            await writer.drain()
            writer.close()


async def test_worker_of_another_protocol_version_is_refused(stack: _Stack, alone: Output) -> None:
    async with Client(stack.front.address) as client, Scheduler(stack.scheduler.address) as owner:
        async with _undisturbed_neighbour(client, alone):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await EchoWorker(stack.scheduler.address, protocol_version=99).run()
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert refused.value.details() == f"protocol_version=99: this scheduler speaks {PROTOCOL_VERSION}"
        assert (await owner.stats()).num_worker_groups == 1


async def test_abort_columns_of_unequal_length_are_refused_by_name(stack: _Stack, alone: Output) -> None:
    hello = scheduler_pb2.AttachHello(protocol_version=PROTOCOL_VERSION, peer_id="bad")
    submit = scheduler_pb2.SubmitFrame(abort_handles=[1, 2], abort_indexes=[-1])

    async def frames() -> AsyncIterator[scheduler_pb2.AttachRequest]:
        yield scheduler_pb2.AttachRequest(hello=hello)
        yield scheduler_pb2.AttachRequest(submit=submit)
        await asyncio.Event().wait()

    async with Client(stack.front.address) as client, Scheduler(stack.scheduler.address) as owner:
        async with _undisturbed_neighbour(client, alone):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in owner.stub.Attach(frames()):
                    pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details() == (
            "abort_indexes has 1 entries: it must have one per entry of abort_handles, 2"
        )


async def test_unreadable_frame_on_attach_is_refused_by_field(stack: _Stack, alone: Output) -> None:
    hello = scheduler_pb2.AttachHello(protocol_version=PROTOCOL_VERSION, peer_id="bad")
    admission = _wire(2, _wire(1, _wire(2, b"\xff")))

    async def frames() -> AsyncIterator[bytes]:
        yield scheduler_pb2.AttachRequest(hello=hello).SerializeToString()
        yield admission
        await asyncio.Event().wait()

    async with Client(stack.front.address) as client, Client(stack.scheduler.address) as owner:
        async with _undisturbed_neighbour(client, alone):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                async for _ in owner.channel.stream_stream("/quire.v1.SchedulerService/Attach")(frames()):
                    pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_from_rpc(refused.value).field == "submit.admissions[0].request_id"
