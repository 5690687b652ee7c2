"""The Node `openai` package, unchanged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.clients.node_package import install
from tests.clients.said import ASKS_FOR_CALLS, CALL, MODEL, SCRIPTED_MODEL, is_mood

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a scenario of the program; what came of it."""
    package = install(Path(__file__).parent / "node", tmp_path_factory.mktemp("node"))

    def run_scenario(url: str, *words: str) -> Any:
        return json.loads(package.run(["client.mjs", f"{url}/v1", *words]))

    return run_scenario


def test_chat_and_completion_streamed_or_whole(run: Run, shipped_url: str) -> None:
    assert run(shipped_url, MODEL, "models") == [MODEL]
    chat = run(shipped_url, MODEL, "chat")
    text = chat["choices"][0]["message"]["content"]
    assert text
    usage = chat["usage"]
    assert 0 < usage["completion_tokens"] <= 12
    streamed = run(shipped_url, MODEL, "chatStream")
    assert streamed["text"] == text
    assert streamed["usage"]["completion_tokens"] == usage["completion_tokens"]
    assert streamed["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    completion = run(shipped_url, MODEL, "completion")
    assert completion["choices"][0]["text"]
    assert run(shipped_url, MODEL, "completionStream")["text"] == completion["choices"][0]["text"]


def test_several_choices_logprobs_and_stop(run: Run, shipped_url: str) -> None:
    choices = run(shipped_url, MODEL, "several")["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in choices}) > 1
    entries = run(shipped_url, MODEL, "logprobs")["choices"][0]["logprobs"]["content"]
    assert entries
    for entry in entries:
        assert len(entry["top_logprobs"]) == 3
        assert entry["logprob"] == max(each["logprob"] for each in entry["top_logprobs"]) <= 0
    (stopped,) = run(shipped_url, MODEL, "stop")["choices"]
    assert stopped["finish_reason"] == "stop"
    assert not set("ea") & set(stopped["message"]["content"])


def test_an_answer_keeps_to_a_json_schema(run: Run, shipped_url: str) -> None:
    (choice,) = run(shipped_url, MODEL, "schema")["choices"]
    assert choice["finish_reason"] == "stop"
    assert is_mood(json.loads(choice["message"]["content"]))


@pytest.mark.parametrize("scenario", ["tools", "toolsStream"])
def test_tools_are_called(run: Run, scripted_url: str, scenario: str) -> None:
    (choice,) = run(scripted_url, SCRIPTED_MODEL, scenario, ASKS_FOR_CALLS)["choices"]
    assert choice["message"]["content"] == "Let me see."
    assert choice["finish_reason"] == "tool_calls"
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["weather", "weather"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [CALL["arguments"]] * 2
    assert len({call["id"] for call in calls}) == 2


def test_an_error_is_the_packages_own(run: Run, shipped_url: str) -> None:
    error = run(shipped_url, MODEL, "error")
    assert (error["status"], error["kind"]) == (404, "NotFoundError")
    assert "nope" in error["message"]
