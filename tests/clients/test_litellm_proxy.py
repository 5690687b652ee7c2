"""LiteLLM's proxy in front of `quire serve`, unchanged, and the `openai` client in front of that.

The proxy pins versions of its own, so it lives in an environment of its own.
"""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import openai
import pytest

from tests.clients.said import ASKS_FOR_CALLS, CALL, MODEL, MOOD_SCHEMA, SCRIPTED_MODEL, WEATHER, is_mood

_PROGRAM = Path(__file__).parents[2] / ".venv-litellm" / "bin" / "litellm"
_READY_WITHIN_S = 100.0
_POLL_S = 0.2
_MESSAGES: Any = [{"role": "user", "content": "Speak of love."}]
_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "DO_NOT_TRACK": "1"}


@pytest.fixture(scope="module")
def client(
    shipped_url: str, scripted_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    if not _PROGRAM.is_file():
        pytest.skip("LiteLLM's proxy is not installed; make clients installs it")
    directory = tmp_path_factory.mktemp("litellm")
    config = directory / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "model_list": [
                    _model("openai-chat", f"openai/{MODEL}", shipped_url),
                    _model("vllm-chat", f"hosted_vllm/{MODEL}", shipped_url),
                    _model("completion", f"text-completion-openai/{MODEL}", shipped_url),
                    _model("openai-tools", f"openai/{SCRIPTED_MODEL}", scripted_url),
                    _model("vllm-tools", f"hosted_vllm/{SCRIPTED_MODEL}", scripted_url),
                ],
                "litellm_settings": {"telemetry": False, "num_retries": 0},
            }
        )
    )
    key = f"sk-{secrets.token_hex(32)}"  # the proxy does not start without one
    with (
        _proxy(config, directory, key) as url,
        openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client,
    ):
        yield client


def _model(name: str, model: str, url: str) -> dict[str, Any]:
    return {
        "model_name": name,
        "litellm_params": {"model": model, "api_base": f"{url}/v1", "api_key": "none"},
    }


@contextlib.contextmanager
def _proxy(config: Path, directory: Path, key: str) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(_PROGRAM), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env={**os.environ, **_ENVIRONMENT, "LITELLM_MASTER_KEY": key},
            stdout=output,
            stderr=output,
        )
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health/liveliness", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = monotonic() + _READY_WITHIN_S
    while True:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(url, timeout=5):
                return
        assert process.poll() is None and monotonic() < deadline, log.read_text()[-3000:]
        sleep(_POLL_S)


@pytest.mark.parametrize("model", ["openai-chat", "vllm-chat"])
def test_a_chat_is_the_same_streamed_or_whole(client: openai.OpenAI, model: str) -> None:
    body: dict[str, Any] = {"model": model, "messages": _MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**body)
    assert whole.choices[0].message.content
    assert whole.usage is not None and 0 < whole.usage.completion_tokens <= 12
    chunks = list(client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    usages = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usages and usages[-1] is not None
    assert usages[-1].completion_tokens == whole.usage.completion_tokens


def test_a_completion_is_the_same_streamed_or_whole(client: openai.OpenAI) -> None:
    body: dict[str, Any] = {"model": "completion", "prompt": "ROMEO:\n", "max_tokens": 12, "temperature": 0}
    text = client.completions.create(**body).choices[0].text
    assert text
    chunks = client.completions.create(**body, stream=True)
    assert "".join(choice.text or "" for chunk in chunks for choice in chunk.choices) == text


@pytest.mark.parametrize("model", ["openai-chat", "vllm-chat"])
def test_several_choices_logprobs_and_stop(client: openai.OpenAI, model: str) -> None:
    body: dict[str, Any] = {"model": model, "messages": _MESSAGES}
    several = client.chat.completions.create(**body, n=4, max_tokens=8, seed=1).choices
    assert len({choice.message.content for choice in several}) > 1
    assert len(several) == 4
    (told,) = client.chat.completions.create(
        **body, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    ).choices
    assert told.logprobs is not None and told.logprobs.content
    assert "".join(entry.token for entry in told.logprobs.content) == told.message.content
    assert all(len(entry.top_logprobs) == 3 for entry in told.logprobs.content)
    (stopped,) = client.chat.completions.create(**body, max_tokens=60, temperature=0, stop=["e", "a"]).choices
    assert stopped.finish_reason == "stop"
    assert not set("ea") & set(stopped.message.content or "")


@pytest.mark.parametrize("model", ["openai-chat", "vllm-chat"])
def test_an_answer_keeps_to_a_json_schema(client: openai.OpenAI, model: str) -> None:
    form: Any = {
        "type": "json_schema",
        "json_schema": {"name": "mood", "schema": MOOD_SCHEMA, "strict": True},
    }
    (choice,) = client.chat.completions.create(
        model=model, messages=_MESSAGES, max_tokens=60, response_format=form
    ).choices
    assert choice.finish_reason == "stop"
    assert is_mood(json.loads(choice.message.content or ""))


@pytest.mark.parametrize("model", ["openai-tools", "vllm-tools"])
def test_tools_are_called(client: openai.OpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": ASKS_FOR_CALLS}]
    (choice,) = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER]).choices
    assert choice.message.content == "Let me see."
    assert choice.finish_reason == "tool_calls"
    calls = [call.function for call in choice.message.tool_calls or []]
    assert [(call.name, json.loads(call.arguments)) for call in calls] == [("weather", CALL["arguments"])] * 2


@pytest.mark.parametrize("model", ["openai-tools", "vllm-tools"])
def test_calls_add_up_when_streamed(client: openai.OpenAI, model: str) -> None:
    messages: Any = [{"role": "user", "content": ASKS_FOR_CALLS}]
    calls: dict[int, list[str]] = {}
    stream = client.chat.completions.create(model=model, messages=messages, tools=[WEATHER], stream=True)
    for chunk in stream:
        for call in (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []:
            name_and_arguments = calls.setdefault(call.index, ["", ""])
            name_and_arguments[0] += call.function.name or ""
            name_and_arguments[1] += call.function.arguments or ""
    assert [(name, json.loads(arguments)) for name, arguments in calls.values()] == [
        ("weather", CALL["arguments"])
    ] * 2
