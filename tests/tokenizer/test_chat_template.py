"""Chat templates: what they are given, the last message left open, and what a template may not do."""

import json
from pathlib import Path
from typing import Any

import pytest
from quire_tokenizer.chat_template import ChatTemplate, load_chat_template
from quire_tokenizer.conversation import Conversation
from transformers.utils.chat_template_utils import render_jinja_template

from quire.errors import InvalidRequest
from quire.v1 import tokenizer_pb2

_PLAIN = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_TRIMMING = _PLAIN.replace("m.content", "m.content | trim")


def _messages(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": "assistant" if number % 2 else "user", "content": content}
        for number, content in enumerate(contents)
    ]


def _continued(source: str, *contents: str) -> str:
    template = ChatTemplate(source, {})
    return template.render(_messages(*contents), add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize("source", [_PLAIN, _TRIMMING])
@pytest.mark.parametrize("content", ["", "Sure, here", "user", "</user>"])
def test_continued_message_ends_where_its_content_ends(source: str, content: str) -> None:
    assert _continued(source, "Hi", content) == f"<user>Hi</user>\n<assistant>{content}"


def test_spaces_at_the_end_stay_unless_the_template_trims() -> None:
    assert _continued(_PLAIN, "Hi", "One, \n") == "<user>Hi</user>\n<assistant>One, \n"
    assert _continued(_TRIMMING, "Hi", "One, \n") == "<user>Hi</user>\n<assistant>One,"


def test_template_that_drops_the_last_message_cannot_be_continued() -> None:
    with pytest.raises(InvalidRequest, match="leaves the last message out") as refused:
        _continued("{{ messages[0].content }}", "Hi", "Sure")
    assert refused.value.field == "chat.continue_final_message"


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_number_that_json_does_not_have_is_refused_by_name(number: float) -> None:
    chat = tokenizer_pb2.ChatPrompt()
    chat.chat_template_kwargs["depth"] = number
    with pytest.raises(InvalidRequest, match="every number must be finite") as refused:
        Conversation.from_proto(chat)
    assert refused.value.field == "chat.chat_template_kwargs"


def test_template_reaches_nothing_outside_its_sandbox() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
    ):
        with pytest.raises(InvalidRequest, match=r"chat\.messages"):
            ChatTemplate(source, {}).render(_messages("Hi"))


def test_endless_output_is_cut_off() -> None:
    source = "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}"
    with pytest.raises(InvalidRequest, match="longer than"):
        ChatTemplate(source, {}).render(_messages("Hi"))


_WITH_TOOLS = """\
{%- if tools %}{% for tool in tools %}
{{ tool | tojson }}|{{ tool.function | tojson(indent=2) }}|{{ tool | tojson(separators=(",", ":")) }}
{% endfor %}{% endif -%}
{% for m in messages %}
<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>
{%- if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}
{%- generation %}{{ m.content }}{% endgeneration %}
{%- for call in m.tool_calls or [] %}
{{ call.id }}:{{ call.function.name }}
{%- for key, value in call.function.arguments | items %} {{ key }}={{ value | tojson }}{% endfor %}
{% endfor %}
{%- if m.tool_call_id %} for {{ m.tool_call_id }}{% endif %}
{% endfor %}
{%- if add_generation_prompt %}<assistant>{% endif %}"""

_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Das Wetter <heute> & überall",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string"}, "days": {"minimum": 1}},
            },
        },
    }
]
_WITH_CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Wetter?"},
    {
        "role": "assistant",
        "content": "",
        "reasoning": "Hm.",
        "reasoning_content": "Hm.",
        "tool_calls": [
            {
                "id": "a1",
                "type": "function",
                "function": {"name": "weather", "arguments": {"place": "Köln", "days": 2}},
            },
            {"id": "a2", "type": "function", "function": {"name": "weather", "arguments": {}}},
        ],
    },
    {"role": "tool", "name": "weather", "content": "Regen", "tool_call_id": "a1"},
]


@pytest.mark.parametrize("tools", [_TOOLS, None])
def test_tools_and_calls_are_rendered_as_transformers_does(tools: list[dict[str, Any]] | None) -> None:
    (expected,), _spans = render_jinja_template(
        [_WITH_CALLS], tools=tools, chat_template=_WITH_TOOLS, add_generation_prompt=True
    )
    variables = {"tools": tools} if tools else {}
    assert ChatTemplate(_WITH_TOOLS, {}).render(_WITH_CALLS, variables=variables) == expected


def test_conversation_of_the_contract_renders_as_its_messages() -> None:
    calls = [
        tokenizer_pb2.ToolCall(id="a1", name="weather", arguments='{"place": "Köln", "days": 2}'),
        tokenizer_pb2.ToolCall(id="a2", name="weather"),
    ]
    chat = tokenizer_pb2.ChatPrompt(
        messages=[
            tokenizer_pb2.ChatMessage(role="user", content="Wetter?"),
            tokenizer_pb2.ChatMessage(role="assistant", reasoning_content="Hm.", tool_calls=calls),
            tokenizer_pb2.ChatMessage(role="tool", name="weather", content="Regen", tool_call_id="a1"),
        ],
        tools_json=json.dumps(_TOOLS),
    )
    template = ChatTemplate(_WITH_TOOLS, {})
    expected = template.render(_WITH_CALLS, variables={"tools": _TOOLS})
    assert Conversation.from_proto(chat).render(template) == expected


@pytest.mark.parametrize(
    ("chat", "field", "message"),
    [
        ({"tools_json": "{}"}, "chat.tools_json", "must be a JSON array of objects"),
        ({"tools_json": "[1]"}, "chat.tools_json", "must be a JSON array of objects"),
        ({"tools_json": "["}, "chat.tools_json", "chat.tools_json is no JSON"),
        ({"tools_json": "[" * 100_000}, "chat.tools_json", "chat.tools_json is no JSON"),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[]"}]}]},
            "chat.messages",
            r"tool_calls\[0\]\.arguments='\[\]': must be a JSON object",
        ),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{}]}]},
            "chat.messages",
            r"tool_calls\[0\]\.name is empty",
        ),
    ],
)
def test_conversation_of_the_contract_names_what_is_wrong(
    chat: dict[str, Any], field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        Conversation.from_proto(tokenizer_pb2.ChatPrompt(**chat))
    assert refused.value.field == field


_PARTS = [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]


@pytest.mark.parametrize(
    "loop",
    [
        "{% for part in m.content %}[{{ part.text }}]{% endfor %}",
        "{% for part in m['content'] | list %}[{{ part['text'] }}]{% endfor %}",
        "{% set said = m.content %}{% for part in said %}[{{ part.text }}]{% endfor %}",
    ],
)
def test_template_gets_parts_where_it_walks_through_them(loop: str) -> None:
    source = "{% for m in messages %}<{{ m.role }}>" + loop + "{% endfor %}"
    template = ChatTemplate(source, {})
    messages = [{"role": "user", "content": _PARTS}, {"role": "assistant", "content": "Three"}]
    assert template.render(messages) == "<user>[One][two]<assistant>[Three]"
    opened = template.render(messages, add_generation_prompt=False, continue_final_message=True)
    assert opened == "<user>[One][two]<assistant>[Three"


def test_template_gets_one_text_where_it_knows_no_parts() -> None:
    messages = [{"role": "user", "content": _PARTS}, {"role": "assistant", "content": None}]
    assert ChatTemplate(_PLAIN, {}).render(messages, add_generation_prompt=False) == (
        "<user>One\ntwo</user>\n<assistant></assistant>\n"
    )


def test_developer_is_a_system_message_unless_the_template_knows_it() -> None:
    messages = [{"role": "developer", "content": "Be brief."}]
    assert ChatTemplate("{{ messages[0].role }}", {}).render(messages) == "system"
    assert ChatTemplate("{# developer #}{{ messages[0].role }}", {}).render(messages) == "developer"


def test_template_for_tools_is_taken_where_there_are_tools(tmp_path: Path) -> None:
    named = [
        {"name": "tool_use", "template": "{{ tools | length }}"},
        {"name": "default", "template": "none"},
    ]
    template = load_chat_template(tmp_path, {"chat_template": named})
    assert template is not None
    assert template.render(_messages("Hi")) == "none"
    assert template.render(_messages("Hi"), variables={"tools": _TOOLS}) == "1"
