"""langchain-openai, unchanged."""

import json
from typing import Any

import pytest

from tests.clients.said import ASKS_FOR_CALLS, CALL, MODEL, MOOD_SCHEMA, SCRIPTED_MODEL, WEATHER, is_mood

langchain_openai = pytest.importorskip(
    "langchain_openai", reason="langchain-openai is not installed; make clients installs it"
)

from langchain_core.messages import HumanMessage, ToolMessage  # noqa: E402 - only where it is installed

_CALLS = [(CALL["name"], CALL["arguments"])] * 2


def _chat(url: str, model: str = MODEL, **options: Any) -> Any:
    return langchain_openai.ChatOpenAI(
        openai_api_base=f"{url}/v1", openai_api_key="none", model=model, max_retries=0, **options
    )


def test_a_chat_is_the_same_streamed_or_whole(shipped_url: str) -> None:
    chat = _chat(shipped_url, temperature=0, max_tokens=12)
    whole = chat.invoke("Speak of love.")
    assert whole.content
    assert whole.response_metadata["finish_reason"] in ("length", "stop")
    assert whole.usage_metadata["output_tokens"] <= 12
    total = None
    for chunk in chat.stream("Speak of love.", stream_usage=True):
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.content == whole.content
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert total.usage_metadata[count] == whole.usage_metadata[count]


async def test_a_chat_is_the_same_without_waiting(shipped_url: str) -> None:
    chat = _chat(shipped_url, temperature=0, max_tokens=12)
    whole = await chat.ainvoke("Speak of love.")
    assert "".join([chunk.content async for chunk in chat.astream("Speak of love.")]) == whole.content


def test_several_choices_logprobs_and_stop(shipped_url: str) -> None:
    (generations,) = (
        _chat(shipped_url, n=4, max_tokens=8, seed=1).generate([[HumanMessage("Speak.")]]).generations
    )
    assert len(generations) == 4
    assert len({generation.text for generation in generations}) > 1
    told = _chat(shipped_url, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3).invoke("Speak.")
    entries = told.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == told.content
    assert all(len(entry["top_logprobs"]) == 3 for entry in entries)
    stopped = _chat(shipped_url, temperature=0, max_tokens=60, stop=["e", "a"]).invoke("Speak of love.")
    assert stopped.response_metadata["finish_reason"] == "stop"
    assert not set("ea") & set(stopped.content)


def test_a_completion_is_the_same_streamed_or_whole(shipped_url: str) -> None:
    llm = langchain_openai.OpenAI(
        openai_api_base=f"{shipped_url}/v1", openai_api_key="none", model=MODEL, temperature=0, max_tokens=12
    )
    text = llm.invoke("ROMEO:\n")
    assert text
    assert "".join(llm.stream("ROMEO:\n")) == text


def test_an_answer_keeps_to_a_json_schema(shipped_url: str) -> None:
    chat = _chat(shipped_url, max_tokens=60).with_structured_output(MOOD_SCHEMA, method="json_schema")
    assert is_mood(chat.invoke("How do you feel?"))


def test_tools_are_called_and_their_answers_taken(scripted_url: str) -> None:
    chat = _chat(scripted_url, SCRIPTED_MODEL).bind_tools([WEATHER])
    asked = chat.invoke(ASKS_FOR_CALLS)
    assert asked.content == "Let me see."
    assert [(call["name"], call["args"]) for call in asked.tool_calls] == _CALLS
    assert asked.response_metadata["finish_reason"] == "tool_calls"
    answers = [ToolMessage("Regen", tool_call_id=call["id"]) for call in asked.tool_calls]
    answered = chat.invoke([HumanMessage("Wetter?"), asked, *answers])
    assert answered.content == ""
    assert answered.usage_metadata["input_tokens"] > 0


def test_calls_add_up_when_streamed(scripted_url: str) -> None:
    total = None
    for chunk in _chat(scripted_url, SCRIPTED_MODEL).bind_tools([WEATHER]).stream(ASKS_FOR_CALLS):
        total = chunk if total is None else total + chunk
    assert total is not None
    assert total.content == "Let me see."
    assert [(call["name"], call["args"]) for call in total.tool_calls] == _CALLS
    assert [json.loads(chunk["args"]) for chunk in total.tool_call_chunks] == [CALL["arguments"]] * 2
