"""What a model thinks before a constrained answer is free, and the answer is not; markers may be text or tokens of their own."""

import json
import shutil
from collections.abc import Callable

import pytest
from llguidance import LLMatcher
from quire_worker.grammar_compiler import GrammarCompiler
from tokenizers import AddedToken, Tokenizer

from quire.assets import shipped_model_path
from quire.errors import InvalidRequest
from quire.grammar import check_grammar, grammar_of
from quire.structured_outputs import Reasoning, StructuredOutputsParams

_EOS = 2
_OPTIONAL = Reasoning(openers=("<think>",), closers=("</think>",))
_BEGUN = Reasoning(openers=("<think>",), closers=("</think>",), begun=True)
_OPENED = Reasoning(openers=(), closers=("</think>",), begun=True)
_WORDS = Reasoning(openers=("I think:",), closers=("So: a/b", "Hence:"))

Accepts = Callable[[Reasoning, str], bool]


@pytest.fixture(scope="module", params=["text", "tokens"])
def accepts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Accepts:
    """Whether a text may be generated whole, by a model whose markers are ordinary text or tokens."""
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    shutil.copy(shipped_model_path() / "tokenizer.json", file)
    tokenizer = Tokenizer.from_file(str(file))
    if request.param == "tokens":
        tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
        tokenizer.save(str(file))
    compiler = GrammarCompiler(file, tokenizer.get_vocab_size(), [_EOS])

    def accepts(reasoning: Reasoning, text: str) -> bool:
        constraint = StructuredOutputsParams(regex="[0-9]{2}", reasoning=reasoning)
        matcher = compiler.submit(constraint.to_proto().SerializeToString(), []).result(30)
        return _takes(matcher, [*tokenizer.encode(text, add_special_tokens=False).ids, _EOS])

    return accepts


def _takes(matcher: LLMatcher, token_ids: list[int]) -> bool:
    return matcher.validate_tokens(token_ids) == len(token_ids)


def test_an_answer_needs_no_reasoning_where_none_has_begun(accepts: Accepts) -> None:
    assert accepts(_OPTIONAL, "42")
    assert accepts(_OPTIONAL, "<think>Is it 7, or {8}?\n</think>42")
    assert accepts(_OPTIONAL, "\n<think></think>42")
    assert not accepts(_OPTIONAL, "Is it 7?</think>42")
    assert not accepts(_OPTIONAL, "<think>Is it 7?</think>42 or so")
    assert not accepts(_OPTIONAL, "<think>Is it 7?")


@pytest.mark.parametrize("reasoning", [_BEGUN, _OPENED], ids=["begun", "opened"])
def test_nothing_is_an_answer_before_the_reasoning_ends(accepts: Accepts, reasoning: Reasoning) -> None:
    assert accepts(reasoning, "Is it 7?</think>42")
    assert accepts(reasoning, "</think>42")
    assert not accepts(reasoning, "42")
    assert not accepts(reasoning, "Is it 7?</think>forty-two")
    assert not accepts(reasoning, "Is it 7?</think>No.</think>42")


def test_an_opening_marker_may_come_where_reasoning_begins_anyway(accepts: Accepts) -> None:
    assert accepts(_BEGUN, "<think>Is it 7?</think>42")


def test_markers_may_be_words(accepts: Accepts) -> None:
    assert accepts(_WORDS, "I think: many things. Hence:42")
    assert accepts(_WORDS, "I think: many things. So: a/b42")
    assert not accepts(_WORDS, "I think: many things. So: a42")


@pytest.mark.parametrize("reasoning", [_OPTIONAL, _BEGUN, _OPENED, _WORDS])
@pytest.mark.parametrize(
    "constraint",
    [
        StructuredOutputsParams(json={"type": "integer"}),
        StructuredOutputsParams(json_object=True),
        StructuredOutputsParams(regex="a/b"),
        StructuredOutputsParams(choice=["a/b", '"c"']),
        StructuredOutputsParams(grammar='root ::= "a" thought\nthought ::= "b"'),
        StructuredOutputsParams(grammar='start: before\nbefore: "a"'),
    ],
    ids=lambda constraint: constraint.constraint,
)
def test_every_kind_of_constraint_may_come_after(
    constraint: StructuredOutputsParams, reasoning: Reasoning
) -> None:
    whole = StructuredOutputsParams(
        **{constraint.constraint: getattr(constraint, constraint.constraint)}, reasoning=reasoning
    )
    grammar = grammar_of(whole)
    check_grammar(grammar)
    assert len(json.loads(grammar)["grammars"]) == 2
    assert StructuredOutputsParams.from_proto(whole.to_proto()) == whole


@pytest.mark.parametrize("closers", [(), ("",)])
def test_reasoning_without_an_end_is_refused(closers: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Reasoning(openers=(), closers=closers)
    assert refused.value.field == "structured_outputs"
