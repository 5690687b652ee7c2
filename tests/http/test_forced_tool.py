"""Forced tool calls with a model that would rather not: the shipped one knows no tools, and its output is held to their schemas."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.ship.served import running_stack

_MODEL = "quire-shakespeare"
_MESSAGES: Any = [{"role": "user", "content": "Speak of love."}]


def _tool(name: str, **properties: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


_MOODS, _ACTS = ("glad", "sad"), (1, 2, 3)
_TOOLS = [_tool("feel", mood={"enum": _MOODS}, sure={"type": "boolean"}), _tool("play", act={"enum": _ACTS})]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with running_stack("--max-num-seqs", "8") as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def _is_valid(name: str, arguments: Any) -> bool:
    if name == "play":
        return arguments.keys() == {"act"} and arguments["act"] in _ACTS
    return (
        arguments.keys() == {"mood", "sure"}
        and arguments["mood"] in _MOODS
        and isinstance(arguments["sure"], bool)
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_named_function_is_called_with_arguments_of_its_schema(client: openai.OpenAI, seed: int) -> None:
    (choice,) = client.chat.completions.create(
        model=_MODEL,
        messages=_MESSAGES,
        tools=_TOOLS,
        tool_choice={"type": "function", "function": {"name": "feel"}},
        seed=seed,
        max_tokens=100,
    ).choices
    (call,) = choice.message.tool_calls or []
    assert call.type == "function" and call.function.name == "feel"
    assert _is_valid("feel", json.loads(call.function.arguments))
    assert choice.message.content is None


@pytest.mark.parametrize("stream", [False, True])
def test_some_tool_is_called_where_one_is_required(client: openai.OpenAI, stream: bool) -> None:
    for seed in range(4):
        body: dict[str, Any] = {
            "model": _MODEL,
            "messages": _MESSAGES,
            "tools": _TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": False,
            "seed": seed,
            "max_tokens": 200,
        }
        if stream:
            with client.chat.completions.stream(**body) as events:
                (choice,) = events.get_final_completion().choices
        else:
            (choice,) = client.chat.completions.create(**body).choices
        (call,) = choice.message.tool_calls or []
        assert choice.finish_reason == "tool_calls"
        assert call.type == "function"
        assert _is_valid(call.function.name, json.loads(call.function.arguments))
