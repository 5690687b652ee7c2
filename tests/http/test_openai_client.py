"""What people do with the `openai` client, against a whole stack with the shipped model."""

import json
from collections.abc import Iterator

import grpc
import httpx
import openai
import pytest

from quire.v1 import beam_search_pb2, generation_pb2, generation_pb2_grpc, sampling_pb2
from tests.ship.served import Served, running_stack

_MODEL = "quire-shakespeare"
_PROMPT = "ROMEO:\n"
_EOS = 0
_MESSAGES = [{"role": "user", "content": "Speak of love."}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "16", "--trust-request-chat-template") as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def _over_grpc(served: Served, request: generation_pb2.GenerateRequest) -> tuple[str, list[int]]:
    with grpc.insecure_channel(served.address) as channel:
        responses = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=30))
    deltas = [delta for response in responses for delta in response.outputs]
    return "".join(delta.text for delta in deltas), [token for delta in deltas for token in delta.token_ids]


def test_a_completion_says_what_the_grpc_face_says(client: openai.OpenAI, served: Served) -> None:
    params = sampling_pb2.SamplingParams(max_tokens=24, seed=5, temperature=0.9, top_p=0.95)
    text, token_ids = _over_grpc(served, generation_pb2.GenerateRequest(text=_PROMPT, sampling_params=params))
    answer = client.completions.create(
        model=_MODEL,
        prompt=_PROMPT,
        max_tokens=24,
        seed=5,
        temperature=0.9,
        top_p=0.95,
        extra_body={"return_token_ids": True},
    )
    (choice,) = answer.choices
    assert choice.text == text
    assert choice.model_extra is not None
    assert choice.model_extra["token_ids"] == token_ids
    assert choice.finish_reason == "length"
    assert answer.model == _MODEL
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 24


def test_a_stream_adds_up_to_the_answer_and_ends_with_usage(client: openai.OpenAI) -> None:
    body = {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 30, "seed": 3}
    whole = client.completions.create(**body)
    chunks = list(client.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]][-1] == "length"
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 30
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_repeated_prompt_is_reported_as_cached(client: openai.OpenAI) -> None:
    prompt = "Now is the winter of our discontent made glorious summer by this sun of York; " * 4
    client.completions.create(model=_MODEL, prompt=prompt, max_tokens=1)
    again = client.completions.create(model=_MODEL, prompt=prompt, max_tokens=1)
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert 16 <= (again.usage.prompt_tokens_details.cached_tokens or 0) < again.usage.prompt_tokens


def test_a_batch_is_answered_in_the_order_of_its_prompts(client: openai.OpenAI) -> None:
    prompts = ["ROMEO:\n", "JULIET:\n", "KING:\n"]
    body = {"model": _MODEL, "max_tokens": 12, "temperature": 0.0}
    alone = [client.completions.create(**body, prompt=prompt).choices[0].text for prompt in prompts]
    together = client.completions.create(**body, prompt=prompts)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    assert [choice.text for choice in together.choices] == alone
    texts = ["", "", ""]
    for chunk in client.completions.create(**body, prompt=prompts, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone


def test_token_ids_and_lists_of_them_are_prompts(client: openai.OpenAI, served: Served) -> None:
    tokens = httpx.post(f"{served.url}/tokenize", json={"prompt": _PROMPT}).json()["tokens"]
    body = {"model": _MODEL, "max_tokens": 8, "temperature": 0.0}
    text = client.completions.create(**body, prompt=_PROMPT).choices[0].text
    assert client.completions.create(**body, prompt=tokens).choices[0].text == text
    both = client.completions.create(**body, prompt=[tokens, tokens], echo=True)
    assert [choice.text for choice in both.choices] == [_PROMPT + text] * 2


def test_n_and_best_of_show_the_likeliest_of_what_is_drawn(client: openai.OpenAI) -> None:
    body = {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 10, "seed": 11, "logprobs": 0}
    drawn = client.completions.create(**body, n=4).choices
    assert len({choice.text for choice in drawn}) == 4

    def mean(choice: openai.types.CompletionChoice) -> float:
        assert choice.logprobs is not None and choice.logprobs.token_logprobs
        return sum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    best = client.completions.create(**body, n=2, best_of=4)
    assert [choice.text for choice in best.choices] == [
        choice.text for choice in sorted(drawn, key=mean, reverse=True)[:2]
    ]
    assert best.usage is not None
    assert best.usage.completion_tokens == 40


def test_beams_are_those_of_the_grpc_face_best_first(client: openai.OpenAI, served: Served) -> None:
    beams = beam_search_pb2.BeamSearchParams(beam_width=3, max_tokens=8, length_penalty=0.5)
    request = generation_pb2.GenerateRequest(text=_PROMPT, beam_search_params=beams)
    with grpc.insecure_channel(served.address) as channel:
        responses = list(generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=30))
    expected = {delta.index: delta.text for response in responses for delta in response.outputs}
    extra = {"use_beam_search": True, "length_penalty": 0.5}
    body = {"model": _MODEL, "prompt": _PROMPT, "n": 3, "max_tokens": 8}
    answer = client.completions.create(**body, extra_body=extra)
    assert [choice.text for choice in answer.choices] == [expected[index] for index in range(3)]
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**body, top_p=0.5, extra_body=extra)
    assert refused.value.param == "top_p"


def test_logprobs_of_a_completion_stand_beside_their_tokens(client: openai.OpenAI) -> None:
    body = {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 6, "temperature": 0.0, "logprobs": 3}
    (choice,) = client.completions.create(**body).choices
    columns = choice.logprobs
    assert columns is not None and columns.tokens and columns.token_logprobs and columns.text_offset
    assert "".join(columns.tokens) == choice.text
    places = zip(columns.text_offset, columns.tokens, strict=True)
    assert all(choice.text[at:].startswith(token) for at, token in places)
    assert columns.top_logprobs is not None
    for token, value, top in zip(columns.tokens, columns.token_logprobs, columns.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
    streamed: list[tuple[str, int]] = []
    for chunk in client.completions.create(**body, stream=True):
        part = chunk.choices[0].logprobs
        if part is not None:
            streamed += zip(part.tokens or [], part.text_offset or [], strict=True)
    assert streamed == list(zip(columns.tokens, columns.text_offset, strict=True))


def test_an_echo_has_the_logprobs_of_the_prompt_too(client: openai.OpenAI, served: Served) -> None:
    body = {"model": _MODEL, "prompt": "To be, or not to be", "temperature": 0.0, "logprobs": 2}
    whole = client.completions.create(**body, echo=True, max_tokens=4).choices[0]
    columns = whole.logprobs
    assert columns is not None and columns.tokens and columns.token_logprobs and columns.text_offset
    assert "".join(columns.tokens) == whole.text
    assert columns.token_logprobs[0] is None and all(
        value < 0 for value in columns.token_logprobs[1:] if value
    )
    assert columns.text_offset == [len("".join(columns.tokens[:at])) for at in range(len(columns.tokens))]
    streamed: list[tuple[str, float | None]] = []
    for chunk in client.completions.create(**body, echo=True, max_tokens=4, stream=True):
        part = chunk.choices[0].logprobs
        if part is not None:
            streamed += zip(part.tokens or [], part.token_logprobs or [], strict=True)
    assert [token for token, _value in streamed] == columns.tokens
    scored = client.completions.create(**body, echo=True, max_tokens=0).choices[0]
    assert scored.text == body["prompt"]
    assert scored.logprobs is not None and scored.logprobs.tokens is not None
    assert columns.tokens[: len(scored.logprobs.tokens)] == scored.logprobs.tokens
    alone = httpx.post(
        f"{served.url}/v1/completions", json={**body, "max_tokens": 1, "prompt_logprobs": 1}
    ).json()
    entries = alone["choices"][0]["prompt_logprobs"]
    assert entries[0] is None
    assert len(entries) == len(scored.logprobs.tokens)
    assert scored.logprobs.token_logprobs is not None
    for known, value in zip(entries[1:], scored.logprobs.token_logprobs[1:], strict=True):
        assert value == pytest.approx(next(iter(known.values()))["logprob"], abs=1e-4)
        assert 1 <= len(known) <= 2


def test_a_chat_has_the_logprobs_of_its_rendered_prompt(served: Served) -> None:
    body = {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 2, "prompt_logprobs": 2}
    with httpx.Client(base_url=served.url, timeout=30) as http:
        answer = http.post("/v1/chat/completions", json=body).json()
        refused = http.post("/v1/chat/completions", json={**body, "stream": True})
    entries = answer["prompt_logprobs"]
    assert entries[0] is None
    assert len(entries) == answer["usage"]["prompt_tokens"]
    for entry in entries[1:]:
        own, *others = entry.values()
        assert set(own) == {"logprob", "rank", "decoded_token"}
        assert len(others) == (1 if own["rank"] <= 2 else 2)
    prompt = "".join(next(iter(entry.values()))["decoded_token"] for entry in entries[1:])
    assert _MESSAGES[0]["content"] in prompt
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "prompt_logprobs"


def test_a_stop_string_ends_the_text_and_is_named(client: openai.OpenAI) -> None:
    body = {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 40, "temperature": 0.0}
    text = client.completions.create(**body).choices[0].text
    stop = text[8:11]
    (choice,) = client.completions.create(**body, stop=stop).choices
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"
    assert choice.model_extra is not None and choice.model_extra["stop_reason"] == stop
    (included,) = client.completions.create(
        **body, stop=[stop], extra_body={"include_stop_str_in_output": True}
    ).choices
    assert included.text == choice.text + stop


def test_a_chat_is_rendered_with_the_models_template(client: openai.OpenAI, served: Served) -> None:
    rendered = httpx.post(f"{served.url}/tokenize", json={"messages": _MESSAGES}).json()["tokens"]
    expected = client.completions.create(model=_MODEL, prompt=rendered, max_tokens=12, temperature=0.0)
    answer = client.chat.completions.create(
        model=_MODEL, messages=_MESSAGES, max_completion_tokens=12, temperature=0.0
    )
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == expected.choices[0].text
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(rendered)
    chunks = list(
        client.chat.completions.create(
            model=_MODEL, messages=_MESSAGES, max_tokens=12, temperature=0.0, stream=True
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


def test_content_parts_and_the_developer_role_are_text_like_any_other(
    client: openai.OpenAI, served: Served
) -> None:
    def tokens(messages: list[dict[str, object]]) -> list[int]:
        return httpx.post(f"{served.url}/tokenize", json={"messages": messages}).json()["tokens"]

    plain = tokens([{"role": "system", "content": "Be\nbrief."}, *_MESSAGES])
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    assert tokens([{"role": "developer", "content": parts}, *_MESSAGES]) == plain
    declined = tokens([*_MESSAGES, {"role": "assistant", "content": "I will not."}, *_MESSAGES])
    refusal = [{"type": "refusal", "refusal": "I will not."}]
    assert tokens([*_MESSAGES, {"role": "assistant", "content": refusal}, *_MESSAGES]) == declined
    said = {"role": "assistant", "content": None, "refusal": "I will not."}
    assert tokens([*_MESSAGES, said, *_MESSAGES]) == declined
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=_MODEL, messages=[{"role": "user", "content": [image]}])
    assert "messages[0].content[0].type='image_url'" in refused.value.message


def test_the_last_message_can_be_continued(client: openai.OpenAI) -> None:
    messages = [*_MESSAGES, {"role": "assistant", "content": "Love is"}]
    extra = {"continue_final_message": True, "echo": True}
    answer = client.chat.completions.create(
        model=_MODEL, messages=messages, max_tokens=6, temperature=0.0, extra_body=extra
    )
    content = answer.choices[0].message.content
    assert content is not None
    assert content.startswith("Love is") and len(content) > len("Love is")


def test_a_request_may_bring_its_template_where_the_server_trusts_it(client: openai.OpenAI) -> None:
    template = "{% for m in messages %}{{ m.content }}|{% endfor %}{{ tail }}"
    extra = {"chat_template": template, "chat_template_kwargs": {"tail": "ROMEO:\n"}}
    answer = client.chat.completions.create(
        model=_MODEL, messages=_MESSAGES, max_tokens=5, temperature=0.0, extra_body=extra
    )
    expected = client.completions.create(
        model=_MODEL, prompt="Speak of love.|ROMEO:\n", max_tokens=5, temperature=0.0
    )
    assert answer.choices[0].message.content == expected.choices[0].text


def test_logprobs_of_a_chat_have_bytes_and_alternatives(client: openai.OpenAI) -> None:
    body = {"model": _MODEL, "messages": _MESSAGES, "max_tokens": 6, "seed": 2}
    answer = client.chat.completions.create(**body, n=4, logprobs=True, top_logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert (
            b"".join(bytes(t.bytes or []) for t in choice.logprobs.content).decode() == choice.message.content
        )
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    streamed: dict[int, list[str]] = {}
    for chunk in client.chat.completions.create(**body, n=4, logprobs=True, top_logprobs=2, stream=True):
        (part,) = chunk.choices
        if part.logprobs is not None and part.logprobs.content is not None:
            streamed.setdefault(part.index, []).extend(token.token for token in part.logprobs.content)
    assert streamed == {
        choice.index: [token.token for token in (choice.logprobs.content or [])]
        for choice in answer.choices
        if choice.logprobs is not None
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "a", "temperature": -1}, "temperature=-1.0: must be at least 0 and finite"),
        ({"prompt": "a", "suffix": "b"}, "suffix: inserting text before a suffix is not supported"),
        ({"prompt": "a", "n": 2, "best_of": 1}, "best_of=1: must be at least n=2"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens=0: must be at least 1, unless echo shows the prompt"),
        ({"prompt": "a", "max_tokens": "many"}, "max_tokens='many': Input should be a valid integer"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs=1: not available with stream"),
        ({"prompt": []}, "prompt is empty: it needs at least one token"),
        ({"prompt": [10**6]}, "prompt holds token id 1000000"),
        ({"prompt": ""}, "prompt is empty: a prompt has at least one character"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "allowed_token_ids": [_EOS], "min_tokens": 1}, f"allowed_token_ids=[{_EOS}]: min_tokens=1 forbids"),
        ({"prompt": "a", "response_format": {"type": "xml"}}, "response_format.type='xml': must be one of"),
        ({"prompt": "a", "guided_regex": "a", "guided_choice": ["a"]}, "exclude one another"),
    ],
)  # fmt: skip
def test_a_bad_field_is_refused_by_name(served: Served, fields: dict[str, object], message: str) -> None:
    answer = httpx.post(f"{served.url}/v1/completions", json={"model": _MODEL, **fields})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] in fields


def test_a_conversation_that_is_too_long_is_refused_by_its_name(served: Served) -> None:
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "word " * 200_000}]}
    answer = httpx.post(f"{served.url}/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"
    assert answer.json()["error"]["message"].startswith("messages")


def test_wrong_names_paths_and_documents_have_their_status(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert unknown.value.code == "model_not_found"
    assert "served: quire-shakespeare" in unknown.value.message
    http = httpx.Client(base_url=served.url)
    assert http.get("/v1/nothing").json()["error"]["message"] == "Not Found"
    assert http.get("/v1/completions").status_code == 405
    assert http.post("/v1/completions", content=b"{").status_code == 400
    assert http.post("/v1/completions", content=b'"\xff"').status_code == 400
    assert http.post("/v1/completions", content=b"[]").status_code == 400


def test_a_request_id_is_taken_and_no_two_live_ones_are_alike(served: Served) -> None:
    body = {"model": _MODEL, "prompt": _PROMPT, "max_tokens": 400, "ignore_eos": True, "request_id": "mine"}
    with httpx.Client(base_url=served.url, timeout=30) as http:
        with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as running:
            lines = running.iter_lines()
            first = next(lines)
            assert json.loads(first.removeprefix("data: "))["id"] == "cmpl-mine"
            refused = http.post("/v1/completions", json=body)
    assert refused.status_code == 409
    assert refused.json()["error"]["param"] == "request_id"


def test_unknown_fields_are_tolerated(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=_MODEL, prompt=_PROMPT, max_tokens=2, extra_body={"no_such_field": {"a": 1}}
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 2


def test_the_routes_around_generation(client: openai.OpenAI, served: Served) -> None:
    (model,) = client.models.list().data
    assert model.id == _MODEL
    assert client.models.retrieve(_MODEL).model_extra == model.model_extra
    http = httpx.Client(base_url=served.url)
    for path in ("/health", "/ready", "/ping"):
        assert http.get(path).status_code == 200
    assert http.get("/version").json()["version"]
    tokens = http.post("/tokenize", json={"prompt": "To be", "return_token_strs": True}).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0
    assert "".join(tokens["token_strs"]) == "To be"
    assert tokens["max_model_len"] == 1024
    assert http.post("/detokenize", json={"tokens": tokens["tokens"]}).json() == {"prompt": "To be"}
    chat = http.post("/invocations", json={"messages": _MESSAGES, "max_tokens": 2}).json()
    assert chat["object"] == "chat.completion"
    text = http.post("/invocations", json={"prompt": _PROMPT, "max_tokens": 2}).json()
    assert text["object"] == "text_completion"
    assert http.post("/invocations", json={}).status_code == 400
    assert http.get("/docs").status_code == 200
    document = http.get("/openapi.json").json()
    reference = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    name = reference["$ref"].rpartition("/")[2]
    assert "prompt" in document["components"]["schemas"][name]["properties"]
