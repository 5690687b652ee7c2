"""A model that thinks, thinks freely before an answer that is constrained: real worker, reasoning parser, `openai` client.

The shipped model does not think. Here a token of its own becomes `</think>`, and a bias lets it come now and then.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest

from quire.assets import shipped_model_path
from tests.ship.served import running_stack

_MODEL = "thinker"
_CLOSER_ID = 1
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"guilty": {"type": "boolean"}, "penalty": {"enum": ["exile", "fine"]}},
    "required": ["guilty", "penalty"],
    "additionalProperties": False,
}
_BODY: Any = {
    "model": _MODEL,
    "messages": [{"role": "user", "content": "Speak of love."}],
    "logit_bias": {str(_CLOSER_ID): 8},
    "max_tokens": 200,
}
_JUDGE: Any = {"type": "function", "function": {"name": "judge", "parameters": _SCHEMA}}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    model = tmp_path_factory.mktemp("model") / _MODEL
    _copy_with_closer(model)
    flags = ("--served-model-name", _MODEL, "--reasoning-parser", "deepseek_r1", "--max-num-seqs", "8")
    with running_stack("--model", str(model), *flags) as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def _copy_with_closer(model: Path) -> None:
    shutil.copytree(shipped_model_path(), model)
    file = model / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    (token,) = (each for each in tokenizer["added_tokens"] if each["id"] == _CLOSER_ID)
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.pop(token["content"], None)
    token["content"], token["special"] = "</think>", False
    vocabulary["</think>"] = _CLOSER_ID
    file.write_text(json.dumps(tokenizer))


def _reasoning(message: Any) -> str:
    return (message.model_extra or {}).get("reasoning_content") or ""


def test_the_answer_is_held_to_its_schema_and_the_thought_is_free(client: openai.OpenAI) -> None:
    thoughts: list[str] = []
    for seed in range(6):
        (choice,) = client.chat.completions.create(
            **_BODY,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": _SCHEMA}},
        ).choices
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), _SCHEMA)
        thoughts.append(_reasoning(choice.message))
    assert any(len(thought) > 3 and not thought.startswith("{") for thought in thoughts), thoughts


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    body: Any = _BODY | {"seed": 1, "extra_body": {"structured_outputs": {"choice": ["guilty", "free"]}}}
    (choice,) = client.chat.completions.create(**body).choices
    content, reasoning = "", ""
    for chunk in client.chat.completions.create(**body, stream=True):
        content += chunk.choices[0].delta.content or ""
        reasoning += _reasoning(chunk.choices[0].delta)
    assert content == choice.message.content
    assert content in ("guilty", "free")
    assert reasoning == _reasoning(choice.message) != ""


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "judge"}}])
def test_a_forced_call_comes_after_the_thought(client: openai.OpenAI, choice: Any) -> None:
    thoughts = ""
    for seed in range(3):
        (answer,) = client.chat.completions.create(
            **_BODY, seed=seed, tools=[_JUDGE], tool_choice=choice, parallel_tool_calls=False
        ).choices
        (call,) = answer.message.tool_calls or []
        assert call.type == "function" and call.function.name == "judge"
        jsonschema.validate(json.loads(call.function.arguments), _SCHEMA)
        thoughts += _reasoning(answer.message)
    assert thoughts


def test_what_ends_while_it_thinks_has_no_answer(client: openai.OpenAI) -> None:
    body: Any = _BODY | {"logit_bias": {str(_CLOSER_ID): -100}, "max_tokens": 8}
    (choice,) = client.chat.completions.create(**body, response_format={"type": "json_object"}).choices
    assert choice.finish_reason == "length"
    assert not choice.message.content
    assert _reasoning(choice.message)
