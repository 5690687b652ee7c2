"""Tool-call parsers: every format is read back, however its text is cut, and what is no call stays text."""

import json
from collections.abc import Iterable, Sequence
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire_tokenizer.output_delta import OutputDelta, TextDelta, ToolDelta
from quire_tokenizer.tool_parser import ToolParser, tool_parser, tool_parser_names
from quire_tokenizer.tool_parser.forced import (
    NamedToolParser,
    RequiredToolParser,
    named_schema,
    required_schema,
)

from quire.errors import ConfigError
from tests.tokenizer.tool_call_format import FORMATS, Call, Format

_CASES = [
    pytest.param(name, form, id=f"{name}-{number}")
    for name, forms in FORMATS.items()
    for number, form in enumerate(forms)
]

_NAMES = st.from_regex(r"\A[a-z][a-z0-9_]{0,8}\Z")
_STRINGS = st.text(st.characters(codec="utf-8", exclude_characters="<"), max_size=12)
_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _STRINGS
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_STRINGS, inner, max_size=3),
    max_leaves=5,
)
_CALLS = st.lists(st.tuples(_NAMES, st.dictionaries(_NAMES, _VALUES, max_size=3)), min_size=1, max_size=3)


class Result:
    """What a client has put together in the end."""

    def __init__(self, deltas: Iterable[OutputDelta]) -> None:
        self.text = ""
        self.calls: list[list[str]] = []
        for delta in deltas:
            if isinstance(delta, TextDelta):
                self.text += delta.text
            else:
                self._add(delta)

    def _add(self, delta: ToolDelta) -> None:
        begins = delta.index == len(self.calls)
        assert (delta.name is not None) == (delta.id is not None) == begins
        if begins:
            self.calls.append([delta.id or "", delta.name or "", ""])
        self.calls[delta.index][2] += delta.arguments_fragment

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result) and vars(self) == vars(other)

    def __repr__(self) -> str:
        return f"Result({self.text!r}, {self.calls!r})"


def _parse(
    parser_class: type[ToolParser],
    pieces: Iterable[str],
    tools: Sequence[dict[str, Any]] = (),
    *,
    holds_calls: bool = False,
) -> Result:
    ids = count()
    parser = parser_class(tools, holds_calls=holds_calls, new_id=lambda: f"id{next(ids)}")
    deltas = [delta for piece in pieces for delta in parser.feed(piece)]
    return Result(deltas + parser.finish())


def _pieces(text: str, cuts: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


def _tools(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """Tools whose schemas declare just what the calls hold."""
    declared: dict[str, dict[str, Any]] = {}
    for name, arguments in calls:
        properties = declared.setdefault(name, {})
        for key, value in arguments.items():
            properties.setdefault(key, {"anyOf": []})["anyOf"].append({"type": _type_name(value)})
    return [
        {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}
        for name, properties in declared.items()
    ]


def _type_name(value: object) -> str:
    names = {
        type(None): "null",
        bool: "boolean",
        int: "integer",
        float: "number",
        str: "string",
        list: "array",
    }
    return names.get(type(value), "object")


def _same_types(calls: Sequence[Call]) -> bool:
    """Whether each parameter has one type throughout, so that bare text tells its value."""
    types: dict[tuple[str, str], set[str]] = {}
    for name, arguments in calls:
        for key, value in arguments.items():
            types.setdefault((name, key), set()).add(_type_name(value))
    return all(len(each) == 1 for each in types.values())


@pytest.mark.parametrize(("name", "form"), _CASES)
@settings(max_examples=40)
@given(
    calls=_CALLS,
    before=st.sampled_from(["", "Let me see.", "One, \n two < three [TOOL"]),
    space=st.sampled_from(["", " ", "\n\n"]),
    cuts=st.lists(st.integers(min_value=0), max_size=8) | st.just(list(range(2000))),
    holds_calls=st.booleans(),
)
def test_calls_are_read_back_however_the_text_is_cut(
    name: str, form: Format, calls: list[Call], before: str, space: str, cuts: list[int], holds_calls: bool
) -> None:
    if form.writes_bare_strings and not _same_types(calls):
        calls = calls[:1]
    if not form.may_follow_text:
        before = ""
    text = before + space + form.write(calls) + space
    result = _parse(tool_parser(name), _pieces(text, cuts), _tools(calls), holds_calls=holds_calls)
    assert result.text == before
    assert [(called, json.loads(arguments)) for _id, called, arguments in result.calls] == calls


_MARKUP = sorted(
    {opener for name in tool_parser_names() for opener in tool_parser(name).openers}
    | {
        "</tool_call>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "```json\n",
        "<|tool_call_begin|>",
        "functions.f:0",
    }
    | {
        "<|tool_call_argument_begin|>",
        "<parameter=a>\n",
        "\n</parameter>",
        "</function>",
        "f>",
        "<arg_key>a</arg_key>",
    }
    | {
        "<arg_value>",
        "</arg_value>",
        '<invoke name="f">',
        '<parameter name="a">',
        "</invoke>",
        "[ARGS]",
        "[CALL_ID]",
    }
    | {
        '<｜DSML｜invoke name="f">',
        '<｜DSML｜parameter name="a" string="true">',
        "</｜DSML｜parameter>",
        "</｜DSML｜invoke>",
    }
)
_JSON_PARTS = [
    '{"name": "f", "arguments": ',
    '{"name": "f"',
    '"parameters": {',
    '{"a": ',
    '"x"',
    "1",
    "-0.5e",
    "tru",
    "{}",
]
_PARTS = [
    *_JSON_PARTS,
    "}",
    "}}",
    "]",
    "[",
    "(",
    ")",
    "f(",
    "a=",
    "'",
    '"',
    "\\",
    "\\u00",
    ",",
    ", ",
    ";",
    ": ",
    " ",
    "\n",
]
_SCRAPS = st.lists(
    st.sampled_from([*_MARKUP, *_PARTS, "é", "🙂", "f", "<"]) | st.text(max_size=2), max_size=14
)


@pytest.mark.parametrize("name", tool_parser_names())
@settings(max_examples=60)
@given(
    scraps=_SCRAPS,
    cuts=st.lists(st.integers(min_value=0), max_size=8) | st.just(list(range(500))),
    holds_calls=st.booleans(),
)
def test_any_text_adds_up_to_the_same_however_it_is_cut(
    name: str, scraps: list[str], cuts: list[int], holds_calls: bool
) -> None:
    text = "".join(scraps)
    whole = _parse(tool_parser(name), [text], holds_calls=holds_calls)
    assert _parse(tool_parser(name), _pieces(text, cuts), holds_calls=holds_calls) == whole
    if not whole.calls:
        assert whole.text == text
    if holds_calls:
        for _id, called, arguments in whole.calls:
            assert called
            assert isinstance(json.loads(arguments), dict)


_BROKEN = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f"}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}'),
    ("hermes", '<tool_call>{"name": "\\ud83d", "arguments": {}}'),
    ("hermes", 'Write "<tool_call>" first.'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "cut off'),
    ("llama3_json", '{"city": "Paris", "country": "France"}'),
    ("llama3_json", 'Call {"name": "f", "parameters": {}}'),
    ("llama3_json", '<|python_tag|>print("hello")'),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral", "[TOOL_CALLS]f[ARGS]"),
    ("pythonic", "[1, 2, 3]"),
    ("pythonic", '[f(a=b"x")]'),
    ("pythonic", "[f(1)]"),
    ("pythonic", "[f(a=g())]"),
    ("pythonic", '[a link](https://example.com/?q="x")'),
    ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\ncut off"),
    ("qwen3_coder", "Use <function=f> as it is."),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{}"),
]


@pytest.mark.parametrize(("name", "text"), _BROKEN)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_what_is_no_call_comes_out_as_it_was_written(name: str, text: str, size: int) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    result = _parse(tool_parser(name), pieces, holds_calls=True)
    assert result.calls == []
    assert result.text == text


def test_broken_call_does_not_hide_the_next() -> None:
    text = '<tool_call>{oops}</tool_call>\n<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    result = _parse(tool_parser("hermes"), [text])
    assert result == Result([TextDelta("<tool_call>{oops}</tool_call>"), ToolDelta(0, "id0", "f", "{}")])


def test_call_that_breaks_off_while_streaming_keeps_what_was_sent() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": 1, oops}}</tool_call>'
    result = _parse(tool_parser("hermes"), list(text))
    assert result == Result([ToolDelta(0, "id0", "f", '{"a": 1, '), TextDelta("oops}}</tool_call>")])


@pytest.mark.parametrize(
    ("name", "text", "sent"),
    [
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "one tw', '{"a": "one tw'),
        ("mistral", '[TOOL_CALLS]f{"a": "one tw', '{"a": "one tw'),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\none tw", '{"a": "one tw'),
        ("qwen3_coder", "<tool_call>\n<function=f>\n<parameter=a>\none\n</par", '{"a": "one'),
        ("pythonic", '[f(a="one", b="tw', '{"a": "one"'),
    ],
)
def test_arguments_are_passed_on_while_they_are_written(name: str, text: str, sent: str) -> None:
    parser = tool_parser(name)(new_id=lambda: "id")
    assert Result(parser.feed(text)) == Result([ToolDelta(0, "id", "f", sent)])
    assert parser.num_calls == 0


def test_text_is_held_back_only_as_far_as_it_may_be_a_marker() -> None:
    parser = tool_parser("hermes")()
    assert parser.feed("One < two <tool") == [TextDelta("One < two")]
    assert parser.feed("box> ") == [TextDelta(" <toolbox>")]
    assert parser.finish() == [TextDelta(" ")]


def test_bare_values_get_the_type_that_the_schema_declares() -> None:
    properties = {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "ratio": {"type": ["number", "null"]},
        "flag": {"type": "boolean"},
        "items": {"anyOf": [{"type": "array"}, {"type": "null"}]},
        "choice": {"enum": ["1", "2"]},
        "place": {"$ref": "#/$defs/place"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}]
    given_values = {
        "text": "12", "count": "12", "ratio": "None", "flag": "True", "items": "['a', 1]", "choice": "1",
        "place": '{"lat": 1.5}', "note": "null", "undeclared": "7",
    }  # fmt: skip
    inside = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in given_values.items())
    result = _parse(tool_parser("qwen3_coder"), [f"<tool_call>\n<function=f>\n{inside}</function>"], tools)
    assert json.loads(result.calls[0][2]) == {
        "text": "12", "count": 12, "ratio": None, "flag": True, "items": ["a", 1], "choice": "1",
        "place": {"lat": 1.5}, "note": None, "undeclared": "7",
    }  # fmt: skip


@pytest.mark.parametrize(
    "properties", [None, [], {"a": None}, {"a": {"type": {}}}, {"a": {"enum": 3, "anyOf": 4}}]
)
def test_schema_that_is_none_means_strings(properties: object) -> None:
    tools: list[Any] = [
        {},
        {"function": 3},
        {"function": {"name": "f", "parameters": {"properties": properties}}},
    ]
    text = "<tool_call><function=f><parameter=a>1</parameter></function></tool_call>"
    assert _parse(tool_parser("qwen3_coder"), [text], tools).calls[0][2] == '{"a": "1"}'


def test_mistral_ids_are_nine_letters_and_digits() -> None:
    (delta,) = tool_parser("mistral")().feed('[TOOL_CALLS]f{"a": 1}')
    assert isinstance(delta, ToolDelta) and delta.id is not None
    assert len(delta.id) == 9 and delta.id.isalnum()
    (delta,) = tool_parser("mistral")().feed('[TOOL_CALLS]f[CALL_ID]abc123XYZ[ARGS]{"a": 1}')
    assert isinstance(delta, ToolDelta) and delta.id == "abc123XYZ"


def test_kimi_ids_are_the_models() -> None:
    text = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:3<|tool_call_argument_begin|>{}"
    assert _parse(tool_parser("kimi_k2"), [text]).calls == [["functions.f:3", "f", "{}"]]


def test_deep_arguments_cost_no_stack() -> None:
    depth = 100_000
    arguments = '{"a":' + "[" * depth + "]" * depth + "}"
    result = _parse(
        tool_parser("hermes"), [f'<tool_call>{{"name": "f", "arguments": {arguments}}}</tool_call>']
    )
    assert result.calls == [["id0", "f", arguments]]


def test_forced_calls_are_read_without_any_format() -> None:
    calls = '[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {}}]'
    assert _parse(RequiredToolParser, list(calls)).calls == [["id0", "f", '{"a": 1}'], ["id1", "g", "{}"]]
    named = NamedToolParser("f", new_id=lambda: "id")
    assert Result([delta for char in '{"a": 1}' for delta in named.feed(char)]) == Result(
        [ToolDelta(0, "id", "f", '{"a": 1}')]
    )


def test_forced_calls_are_held_to_the_tools_schemas() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [
        {"type": "function", "function": {"name": "f", "parameters": parameters}},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert named_schema(tools, "f") == parameters
    items = required_schema(tools)["items"]["anyOf"]
    assert [each["properties"]["name"]["enum"] for each in items] == [["f"], ["g"]]
    assert items[0]["properties"]["parameters"] == parameters


def test_every_parser_has_a_format_and_an_unknown_one_is_named() -> None:
    assert sorted(FORMATS) == tool_parser_names()
    with pytest.raises(ConfigError, match=r"--tool-call-parser=nope: no such parser; known: deepseek_v3, "):
        tool_parser("nope")
