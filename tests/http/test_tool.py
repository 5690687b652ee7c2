"""Tools and reasoning through the whole stack, with the `openai` client and a model that says what the test tells it to."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest

from tests.doubles.scripted_stack import ScriptedStack, scripted_stack
from tests.doubles.scripted_worker import say

_PARAMETERS = {
    "type": "object",
    "properties": {"place": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["place"],
}
_WEATHER = {"type": "function", "function": {"name": "weather", "parameters": _PARAMETERS}}
_CLOCK = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}},
}
_TOOLS = [_WEATHER, _CLOCK]
_ARGUMENTS = {"place": 'Köln, am Rhein – "zu Haus"\n🙂', "days": 3}

_WRITTEN = json.dumps({"name": "weather", "arguments": _ARGUMENTS}, ensure_ascii=False)
_HERMES = f"<tool_call>\n{_WRITTEN}\n</tool_call>"
_HERMES_CLOCK = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
_BROKEN = '<tool_call>\n{"name": "weather", "arguments": {"place": Köln}}\n</tool_call>'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScriptedStack]:
    with scripted_stack(tmp_path_factory.mktemp("model")) as running:
        yield running


@pytest.fixture(scope="module")
def qwen(stack: ScriptedStack) -> Iterator[openai.OpenAI]:
    flags = ("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--reasoning-parser", "qwen3")
    with stack.front_door(*flags) as url, _client(url) as client:
        yield client


@pytest.fixture(scope="module")
def plain(stack: ScriptedStack) -> Iterator[openai.OpenAI]:
    with stack.front_door() as url, _client(url) as client:
        yield client


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@dataclass
class Said:
    """What one choice said, the same whether it came in one piece or in many."""

    content: str | None = None
    reasoning: str | None = None
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish_reason: str | None = None
    num_fragments: int = 0
    """Pieces in which the arguments of all calls came; 0 for an answer in one piece."""


def _ask(client: openai.OpenAI, text: str, *, stream: bool = False, n: int = 1, **options: Any) -> list[Said]:
    body: dict[str, Any] = {
        "model": client.models.list().data[0].id,
        "messages": [{"role": "user", "content": f"Answer me. {say(text)}"}],
        "n": n,
        **options,
    }
    if stream:
        return _streamed(client, body)
    return [_whole(choice) for choice in client.chat.completions.create(**body).choices]


def _whole(choice: Any) -> Said:
    message = choice.message
    calls = message.tool_calls or []
    assert all(call.id and call.type == "function" for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    return Said(
        content=message.content,
        reasoning=getattr(message, "reasoning_content", None),
        calls=[(call.function.name, call.function.arguments) for call in calls],
        finish_reason=choice.finish_reason,
    )


def _streamed(client: openai.OpenAI, body: dict[str, Any]) -> list[Said]:
    said: dict[int, Said] = {}
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            each = said.setdefault(choice.index, Said())
            assert each.finish_reason is None, "a delta after the end"
            _add(each, choice.delta)
            each.finish_reason = choice.finish_reason
    return [said[index] for index in sorted(said)]


def _add(said: Said, delta: Any) -> None:
    if delta.content:
        said.content = (said.content or "") + delta.content
    if reasoning := getattr(delta, "reasoning_content", None):
        said.reasoning = (said.reasoning or "") + reasoning
    for call in delta.tool_calls or []:
        if call.index == len(said.calls):
            assert call.id and call.type == "function" and call.function.name
            said.calls.append((call.function.name, ""))
        else:
            assert call.id is None and call.function.name is None
        name, arguments = said.calls[call.index]
        said.calls[call.index] = (name, arguments + (call.function.arguments or ""))
        said.num_fragments += bool(call.function.arguments)


def _calls(said: Said) -> list[tuple[str, Any]]:
    return [(name, json.loads(arguments)) for name, arguments in said.calls]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_read_out_of_the_text(qwen: openai.OpenAI, stream: bool) -> None:
    (said,) = _ask(qwen, f"Let me see.\n{_HERMES}", tools=_TOOLS, stream=stream)
    assert said.content == "Let me see."
    assert _calls(said) == [("weather", _ARGUMENTS)]
    assert said.finish_reason == "tool_calls"
    assert not stream or said.num_fragments > 3, "arguments are passed on as they come"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_calls_alone_has_no_content(qwen: openai.OpenAI, stream: bool) -> None:
    (said,) = _ask(
        qwen, f"{_HERMES}\n{_HERMES_CLOCK}\n{_HERMES}", tools=_TOOLS, tool_choice="auto", stream=stream
    )
    assert said.content is None
    assert _calls(said) == [("weather", _ARGUMENTS), ("clock", {}), ("weather", _ARGUMENTS)]
    assert said.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_alone_where_parallel_calls_are_not_wanted(qwen: openai.OpenAI, stream: bool) -> None:
    text = f"{_HERMES_CLOCK}\n{_HERMES}"
    (said,) = _ask(qwen, text, tools=_TOOLS, parallel_tool_calls=False, stream=stream)
    assert _calls(said) == [("clock", {})]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_calls_is_an_answer(qwen: openai.OpenAI, stream: bool) -> None:
    (said,) = _ask(qwen, "2 < 3, and so on.", tools=_TOOLS, stream=stream)
    assert said == Said(content="2 < 3, and so on.", finish_reason="stop")


@pytest.mark.parametrize("stream", [False, True])
def test_tool_choice_none_looks_for_no_calls(qwen: openai.OpenAI, stream: bool) -> None:
    (said,) = _ask(qwen, _HERMES, tools=_TOOLS, tool_choice="none", stream=stream)
    assert said.calls == []
    assert said.content is not None and _WRITTEN in said.content
    assert said.finish_reason == "stop"


def test_a_broken_call_is_content(qwen: openai.OpenAI) -> None:
    (said,) = _ask(qwen, f"{_BROKEN}\n{_HERMES_CLOCK}", tools=_TOOLS)
    assert said.content == _BROKEN
    assert _calls(said) == [("clock", {})]
    (said,) = _ask(qwen, _BROKEN, tools=_TOOLS)
    assert said == Said(content=_BROKEN, finish_reason="stop")


def test_a_call_that_breaks_while_it_streams_loses_nothing(qwen: openai.OpenAI) -> None:
    (said,) = _ask(qwen, _BROKEN, tools=_TOOLS, stream=True)
    assert said.calls == [("weather", '{"place": ')]
    assert said.content == "Köln}}\n</tool_call>"


def test_a_call_cut_by_max_tokens_ends_for_length(qwen: openai.OpenAI) -> None:
    (said,) = _ask(qwen, _HERMES, tools=_TOOLS, max_tokens=40)
    assert said.calls == []
    assert said.content is not None and _HERMES.startswith(said.content)
    assert said.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_required_call_is_read_from_the_list_that_the_schema_asks_for(
    qwen: openai.OpenAI, stream: bool
) -> None:
    written = json.dumps([{"name": "weather", "parameters": _ARGUMENTS}, {"name": "clock", "parameters": {}}])
    (said,) = _ask(qwen, written, tools=_TOOLS, tool_choice="required", stream=stream)
    assert said.content is None
    assert _calls(said) == [("weather", _ARGUMENTS), ("clock", {})]
    assert said.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_call_is_its_arguments(plain: openai.OpenAI, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    (said,) = _ask(plain, json.dumps(_ARGUMENTS), tools=_TOOLS, tool_choice=choice, stream=stream)
    assert said.content is None
    assert _calls(said) == [("weather", _ARGUMENTS)]
    assert said.finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_comes_apart_from_the_answer(qwen: openai.OpenAI, stream: bool) -> None:
    (said,) = _ask(qwen, "<think>\nHm, 1 < 2.\n</think>\n\nYes.", stream=stream)
    assert said == Said(content="\n\nYes.", reasoning="\nHm, 1 < 2.\n", finish_reason="stop")
    (said,) = _ask(qwen, "<think>Hm, and so on", stream=stream)
    assert said == Said(content=None, reasoning="Hm, and so on", finish_reason="stop")


@pytest.mark.parametrize("stream", [False, True])
def test_reasoning_and_calls_go_together(qwen: openai.OpenAI, stream: bool) -> None:
    text = f"<think>I could <tool_call> now.</think>\n\n{_HERMES}"
    (said,) = _ask(qwen, text, tools=_TOOLS, stream=stream)
    assert said.reasoning == "I could <tool_call> now."
    assert said.content is None
    assert _calls(said) == [("weather", _ARGUMENTS)]
    assert said.finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_reasoning_where_thinking_is_off(qwen: openai.OpenAI, stream: bool) -> None:
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    (said,) = _ask(qwen, "<think> is a tag.", stream=stream, extra_body=off)
    assert said.reasoning is None
    assert said.content == "<think> is a tag."


@pytest.mark.parametrize("stream", [False, True])
def test_each_of_several_choices_has_its_own_calls(qwen: openai.OpenAI, stream: bool) -> None:
    text = f"<think>Hm.</think>{_HERMES}"
    first, second = _ask(qwen, text, tools=_TOOLS, n=2, stream=stream, temperature=1.0)
    assert _calls(first) == _calls(second) == [("weather", _ARGUMENTS)]
    assert first.reasoning == second.reasoning == "Hm."


def test_a_conversation_goes_on_with_the_tools_answer(qwen: openai.OpenAI) -> None:
    model = qwen.models.list().data[0].id
    messages: list[Any] = [{"role": "user", "content": f"Wetter? {say(_HERMES)}"}]
    asked = qwen.chat.completions.create(model=model, messages=messages, tools=_TOOLS)
    (call,) = asked.choices[0].message.tool_calls or []
    messages.append(asked.choices[0].message)
    messages.append({"role": "tool", "tool_call_id": call.id, "content": f"Regen. {say('Es regnet.')}"})
    answered = qwen.chat.completions.create(model=model, messages=messages, tools=_TOOLS)
    assert answered.choices[0].message.content == "Es regnet."
    assert answered.choices[0].finish_reason == "stop"
    assert answered.usage is not None and asked.usage is not None
    assert answered.usage.prompt_tokens > asked.usage.prompt_tokens


_QWEN_XML = (
    f"<tool_call>\n<function=weather>\n<parameter=place>\n{_ARGUMENTS['place']}\n</parameter>\n"
    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"
)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("mistral", "mistral"), f"[THINK]Hm.[/THINK][TOOL_CALLS]weather{json.dumps(_ARGUMENTS)}"),
        (("llama3_json", "deepseek_r1"), f"Hm.</think><|python_tag|>{_WRITTEN}"),
        (("pythonic", "deepseek_r1"), f"Hm.</think>[weather(place={_ARGUMENTS['place']!r}, days=3)]"),
        (("qwen3_coder", "qwen3"), f"<think>Hm.</think>{_QWEN_XML}"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_other_formats_are_read_through_the_stack(
    stack: ScriptedStack, flags: tuple[str, str], text: str
) -> None:
    parsers = ("--tool-call-parser", flags[0], "--reasoning-parser", flags[1])
    with stack.front_door("--enable-auto-tool-choice", *parsers) as url, _client(url) as client:
        for stream in (False, True):
            (said,) = _ask(client, text, tools=_TOOLS, stream=stream)
            assert said.reasoning == "Hm."
            assert said.content is None
            assert _calls(said) == [("weather", _ARGUMENTS)]
            assert said.finish_reason == "tool_calls"


def test_special_tokens_stay_out_of_a_text_in_which_nothing_is_looked_for(plain: openai.OpenAI) -> None:
    (said,) = _ask(plain, "<think>Hm.</think>Yes.")
    assert said == Said(content="Hm.Yes.", finish_reason="stop")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tools": _TOOLS, "tool_choice": "auto"}, "--enable-auto-tool-choice"),
        ({"tools": _TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "nope"),
        ({"tool_choice": "required"}, "tools"),
        ({"tools": [{"type": "function", "function": {}}]}, "name"),
    ],
)
def test_a_choice_that_cannot_be_had_is_refused(plain: openai.OpenAI, options: Any, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message):
        _ask(plain, "Yes.", **options)
