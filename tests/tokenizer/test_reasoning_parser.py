"""Reasoning parsers: what a model thinks and what it answers, however the text is cut."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire_tokenizer.output_delta import ReasoningDelta, TextDelta
from quire_tokenizer.reasoning_parser import ReasoningParser, reasoning_parser, reasoning_parser_names

from quire.errors import ConfigError

Split = tuple[str, str]


def _split(parser: ReasoningParser, pieces: Iterable[str]) -> Split:
    """What was thought and what was answered; thinking comes first."""
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.finish()
    kinds = [isinstance(delta, TextDelta) for delta in deltas]
    assert kinds == sorted(kinds)
    thought = "".join(delta.text for delta in deltas if isinstance(delta, ReasoningDelta))
    return thought, "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def _pieces(text: str, cuts: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[begin:end] for begin, end in pairwise(places)]


_OFF = {"enable_thinking": False}


@pytest.mark.parametrize(
    ("name", "options", "text", "expected"),
    [
        ("qwen3", {}, "<think>\nHm.\n</think>\n\nYes.", ("\nHm.\n", "\n\nYes.")),
        ("qwen3", {}, "\n<think>Hm.", ("Hm.", "")),
        ("qwen3", {}, "Yes, I <think>", ("", "Yes, I <think>")),
        ("qwen3", {}, " <thin", ("", " <thin")),
        ("qwen3", {}, "<think>Hm. </thin", ("Hm. </thin", "")),
        ("qwen3", {}, "<think>a</think>b<think>c</think>", ("a", "b<think>c</think>")),
        ("qwen3", {"prompt": "…<|im_start|>assistant\n<think>\n"}, "Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("qwen3", {"prompt": "…<think>\n\n</think>\n\n"}, "<think> is a tag", ("", "<think> is a tag")),
        ("qwen3", {"chat_template_kwargs": _OFF}, "<think> is a tag", ("", "<think> is a tag")),
        (
            "qwen3",
            {},
            "<think>A <tool_call>, so\n<tool_call>\n<function=f>",
            ("A <tool_call>, so\n", "<tool_call>\n<function=f>"),
        ),
        ("deepseek_r1", {}, "Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("deepseek_r1", {}, "<think>\nHm.</think>Yes.", ("\nHm.", "Yes.")),
        ("deepseek_r1", {}, "Hm. And so", ("Hm. And so", "")),
        ("deepseek_r1", {"chat_template_kwargs": _OFF}, "Yes.", ("", "Yes.")),
        ("deepseek_v3", {}, "Yes.", ("", "Yes.")),
        ("deepseek_v3", {"chat_template_kwargs": {"thinking": True}}, "Hm.</think>Yes.", ("Hm.", "Yes.")),
        ("granite", {}, "Here's my thought process: Hm. Here is my response: Yes.", (" Hm. ", " Yes.")),
        ("granite", {}, "Here's my answer: Yes.", ("", "Here's my answer: Yes.")),
        ("kimi_k2", {}, "<think>Hm.<|tool_calls_section_begin|>", ("Hm.", "<|tool_calls_section_begin|>")),
        ("mistral", {}, "[THINK]Hm.[/THINK]Yes.", ("Hm.", "Yes.")),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_reasoning_is_told_from_the_answer(
    name: str, options: dict[str, Any], text: str, expected: Split, size: int
) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert _split(reasoning_parser(name)(**options), pieces) == expected


_SCRAPS = [
    "<think>",
    "</think>",
    "<tool_call>\n<function=",
    "[THINK]",
    "[/THINK]",
    "Here is my response:",
    " ",
    "\n",
]


@pytest.mark.parametrize("name", reasoning_parser_names())
@settings(max_examples=60)
@given(
    scraps=st.lists(
        st.sampled_from([*_SCRAPS, *reasoning_parser("granite").openers]) | st.text(max_size=2), max_size=8
    ),
    cuts=st.lists(st.integers(min_value=0), max_size=8),
    options=st.sampled_from([{}, {"chat_template_kwargs": _OFF}, {"prompt": "Hi\n<think>\n"}]),
)
def test_any_text_adds_up_to_the_same_however_it_is_cut(
    name: str, scraps: list[str], cuts: list[int], options: dict[str, Any]
) -> None:
    text = "".join(scraps)
    parser = reasoning_parser(name)
    whole = _split(parser(**options), [text])
    assert _split(parser(**options), _pieces(text, cuts)) == whole
    if not whole[0]:
        assert text.endswith(whole[1])


def test_reasoning_is_shown_as_it_comes_and_no_marker_in_halves() -> None:
    parser = reasoning_parser("qwen3")()
    assert parser.feed("<think>Hm, 1 < 2</thi") == [ReasoningDelta("Hm, 1 < 2")]
    assert not parser.is_done
    assert parser.feed("nk>Yes") == [TextDelta("Yes")]
    assert parser.is_done


def test_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--reasoning-parser=nope: no such parser; known: deepseek_r1, "):
        reasoning_parser("nope")
