"""TokenizerService of a tokenizer process by itself: no scheduler is there."""

from collections.abc import Iterator

import grpc
import pytest

from quire.rpc.status import error_from_rpc
from quire.v1 import generation_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from tests.tokenizer.families import byte_level
from tests.tokenizer.stack import Client, Service, service

_TEXT = "ROMEO:\nIs the day so young? – é 🙂 你好"
_CHAT = tokenizer_pb2.ChatPrompt(
    messages=[
        tokenizer_pb2.ChatMessage(role="user", content="Who goes there?"),
        tokenizer_pb2.ChatMessage(role="assistant", content=""),
    ]
)


@pytest.fixture(scope="module")
def front() -> Iterator[Service]:
    with service("quire_tokenizer", "--grpc-port", "0", "--port", "0") as running:
        yield running


async def test_text_comes_back_from_its_token_ids(front: Service) -> None:
    async with Client(front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        encoded = await stub.Tokenize(tokenizer_pb2.TokenizeRequest(text=_TEXT))
        assert list(encoded.token_ids) == byte_level().encode(_TEXT).ids
        assert encoded.max_model_len == 0
        decoded = await stub.Detokenize(tokenizer_pb2.DetokenizeRequest(token_ids=encoded.token_ids))
        assert decoded.text == _TEXT


@pytest.mark.parametrize(("skip", "text"), [(False, "<|im_start|>"), (True, "")])
async def test_special_tokens_are_left_out_on_demand(front: Service, skip: bool, text: str) -> None:
    async with Client(front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        request = tokenizer_pb2.DetokenizeRequest(token_ids=[1], skip_special_tokens=skip)
        assert (await stub.Detokenize(request)).text == text


async def test_chat_is_rendered_and_encoded_as_generate_would(front: Service) -> None:
    async with Client(front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        answer = await stub.ApplyChatTemplate(tokenizer_pb2.ApplyChatTemplateRequest(chat=_CHAT))
        ends = "<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n"
        assert answer.text == f"<|im_start|>user\nWho goes there?<|im_end|>\n{ends}"
        assert list(answer.token_ids) == byte_level().encode(answer.text).ids
        assert answer.token_ids[0] == byte_level().token_to_id("<|im_start|>")


async def test_last_message_without_content_can_be_continued(front: Service) -> None:
    async with Client(front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        request = tokenizer_pb2.ApplyChatTemplateRequest(chat=_CHAT)
        request.chat.continue_final_message = True
        answer = await stub.ApplyChatTemplate(request)
        assert answer.text == "<|im_start|>user\nWho goes there?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("method", "request_", "code", "field"),
    [
        ("Tokenize", tokenizer_pb2.TokenizeRequest(), "INVALID_ARGUMENT", "text"),
        ("Tokenize", tokenizer_pb2.TokenizeRequest(text="a", model="gpt-6"), "NOT_FOUND", "model"),
        ("Detokenize", tokenizer_pb2.DetokenizeRequest(token_ids=[1024]), "INVALID_ARGUMENT", "token_ids"),
        ("ApplyChatTemplate", tokenizer_pb2.ApplyChatTemplateRequest(), "INVALID_ARGUMENT", "chat.messages"),
        (
            "ApplyChatTemplate",
            tokenizer_pb2.ApplyChatTemplateRequest(
                chat=tokenizer_pb2.ChatPrompt(
                    messages=_CHAT.messages, add_generation_prompt=True, continue_final_message=True
                )
            ),
            "INVALID_ARGUMENT",
            "chat",
        ),
    ],
)
async def test_bad_input_names_the_field(
    front: Service, method: str, request_: object, code: str, field: str
) -> None:
    async with Client(front.address) as client:
        stub = tokenizer_pb2_grpc.TokenizerServiceStub(client.channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await getattr(stub, method)(request_)
    assert refused.value.code().name == code
    assert error_from_rpc(refused.value).field == field


async def test_generation_without_a_scheduler_is_unavailable_and_says_when_to_retry(front: Service) -> None:
    async with Client(front.address) as client:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.stub.Generate(generation_pb2.GenerateRequest(text="Hi")).read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert error_from_rpc(refused.value).retry_after_ms == 1000
