"""Structured output as the `openai` client asks for it, from a model that has never seen JSON: what ends by itself obeys."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from tests.ship.served import running_stack

_MODEL = "quire-shakespeare"
_MESSAGES: Any = [{"role": "user", "content": "Who are you?"}]
_PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "title": {"enum": ["king", "queen", None]},
        "heirs": {
            "type": "array",
            "maxItems": 2,
            "items": {"$ref": "#/$defs/heir"},
        },
    },
    "required": ["name", "age", "title", "heirs"],
    "additionalProperties": False,
    "$defs": {
        "heir": {
            "type": "object",
            "properties": {
                "legitimate": {"type": "boolean"},
                "claim": {"type": "string", "pattern": "^[a-z]{2,6}$"},
            },
            "required": ["legitimate"],
            "additionalProperties": False,
        }
    },
}
_GRAMMAR = 'root ::= verb " " noun "!"\nverb ::= "take" | "give"\nnoun ::= ("gold" | "land") (" and " noun)?'
_SENTENCE = re.compile(r"(take|give) (gold|land)( and (gold|land))*!")


class _Verdict(pydantic.BaseModel):
    guilty: bool
    penalty: Literal["exile", "fine"]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with running_stack("--max-num-seqs", "16") as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def _ended(choices: list[Any]) -> list[str]:
    """Texts of the choices that ended by themselves, of which there must be some."""
    assert {choice.finish_reason for choice in choices} <= {"stop", "length"}
    texts = [choice.message.content for choice in choices if choice.finish_reason == "stop"]
    assert texts, "every choice ran into its limit: nothing was shown"
    return texts


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.5])
def test_answers_validate_against_their_schema(client: openai.OpenAI, temperature: float) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}
    choices = client.chat.completions.create(
        model=_MODEL,
        messages=_MESSAGES,
        response_format=response_format,
        n=4,
        seed=1,
        temperature=temperature,
        max_tokens=200,
    ).choices
    for text in _ended(choices):
        jsonschema.validate(json.loads(text), _PERSON)


def test_an_answer_cut_off_by_its_limit_is_the_beginning_of_a_valid_one(client: openai.OpenAI) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}
    body: Any = {
        "model": _MODEL,
        "messages": _MESSAGES,
        "response_format": response_format,
        "temperature": 0,
    }
    (whole,) = client.chat.completions.create(**body, max_tokens=200).choices
    (short,) = client.chat.completions.create(**body, max_tokens=7).choices
    assert short.finish_reason == "length"
    assert whole.message.content is not None and short.message.content
    assert whole.message.content.startswith(short.message.content)


def test_streams_add_up_to_valid_answers(client: openai.OpenAI) -> None:
    response_format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}}
    texts, reasons = [""] * 4, [""] * 4
    for chunk in client.chat.completions.create(
        model=_MODEL,
        messages=_MESSAGES,
        response_format=response_format,
        n=4,
        seed=2,
        max_tokens=200,
        stream=True,
    ):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert "stop" in reasons
    for text, reason in zip(texts, reasons, strict=True):
        if reason != "length":
            jsonschema.validate(json.loads(text), _PERSON)


def test_the_client_parses_what_its_class_describes(client: openai.OpenAI) -> None:
    for seed in range(4):
        (choice,) = client.chat.completions.parse(
            model=_MODEL, messages=_MESSAGES, response_format=_Verdict, seed=seed, max_tokens=100
        ).choices
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, _Verdict)


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    choices = client.chat.completions.create(
        model=_MODEL,
        messages=_MESSAGES,
        response_format={"type": "json_object"},
        n=8,
        seed=3,
        max_tokens=300,
    ).choices
    for text in _ended(choices):
        assert isinstance(json.loads(text), dict)


@pytest.mark.parametrize(
    ("constraint", "pattern"),
    [
        ({"regex": r"[A-Z][a-z]{2,8} (lives|dies)\."}, re.compile(r"[A-Z][a-z]{2,8} (lives|dies)\.")),
        ({"choice": ["to be", "not to be"]}, re.compile("to be|not to be")),
        ({"grammar": _GRAMMAR}, _SENTENCE),
        ({"json": {"type": "integer", "minimum": 10, "maximum": 99}}, re.compile("[1-9][0-9]")),
        ({"json_object": True}, re.compile(r"\{.*\}", re.DOTALL)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_completions_and_chats_are_held_to_vllms_constraints(
    client: openai.OpenAI, constraint: dict[str, Any], pattern: re.Pattern[str]
) -> None:
    extra = {"structured_outputs": constraint}
    params: Any = {"model": _MODEL, "n": 8, "seed": 5, "max_tokens": 200, "extra_body": extra}
    chat = client.chat.completions.create(messages=_MESSAGES, **params)
    completion = client.completions.create(prompt="ROMEO:\n", **params)
    texts = _ended(chat.choices)
    texts += [choice.text for choice in completion.choices if choice.finish_reason == "stop"]
    assert len(texts) > len(chat.choices) // 2
    for text in texts:
        assert pattern.fullmatch(text), text


def test_the_older_names_say_the_same(client: openai.OpenAI) -> None:
    body: Any = {"model": _MODEL, "prompt": "ROMEO:\n", "seed": 5, "max_tokens": 20}
    older = client.completions.create(**body, extra_body={"guided_choice": ["to be", "not to be"]})
    newer = client.completions.create(
        **body, extra_body={"structured_outputs": {"choice": ["to be", "not to be"]}}
    )
    assert older.choices[0].text == newer.choices[0].text


@pytest.mark.parametrize(
    "constraint",
    [
        {"json": {"type": "no such type"}},
        {"regex": "("},
        {"grammar": "root ::= missing"},
        {"choice": []},
        {"regex": "a", "choice": ["b"]},
    ],
    ids=["json", "regex", "grammar", "choice", "two"],
)
def test_what_is_no_constraint_is_refused_by_name(client: openai.OpenAI, constraint: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(
            model=_MODEL, prompt="ROMEO:\n", extra_body={"structured_outputs": constraint}
        )
    assert (refused.value.param or "").startswith("structured_outputs")
