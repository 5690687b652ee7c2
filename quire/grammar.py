"""Grammars of constraints, by the llguidance library: what a front door checks and a worker runs is compiled alike.

Knows no request and no vocabulary. Only services that compile import it: the package itself does without llguidance.
"""

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, grammar_from

from quire.structured_outputs import Reasoning, StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_RULE_OF_EBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

_JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"(\x20|\n\x20{0,16})"}
"""Between the parts of JSON one space, or a line break and its indentation: given more, small models draw nothing else."""

_MAX_REASON_LEN = 400

TokenIdOf = Callable[[str], int | None]


class GrammarError(ValueError):
    """A constraint that is no grammar, or one that has become too complex to follow; says why."""


def parser_limits() -> LLParserLimits:
    """What a grammar may cost.

    Lexers are built at 50,000 units of fuel a millisecond and followed at 14,000, parsers at 20,000 items a
    millisecond (figures of the library's authors): some 10 ms at most to begin with, and 5 ms a token.
    """
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=70_000,
        step_max_items=50_000,
        max_lexer_states=100_000,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


def grammar_of(constraint: StructuredOutputsParams, token_id_of: TokenIdOf | None = None) -> str:
    """The library's form of a constraint. Raises `GrammarError` when the text is not even of its kind.

    `token_id_of` tells which marker of reasoning is a token that stands for no text; without a vocabulary none is.
    """
    try:
        answer = _grammar_of(constraint)
        if constraint.reasoning is None:
            return answer
        return _after_reasoning(constraint.reasoning, answer, token_id_of or (lambda _text: None))
    except (ValueError, RecursionError) as error:
        raise GrammarError(_reason(str(error))) from error


def check_grammar(grammar: str) -> None:
    """Raises `GrammarError` when a grammar cannot be compiled; releases the GIL while it tries."""
    is_error, reasons = LLMatcher.validate_grammar_with_warnings(grammar, limits=parser_limits())
    if is_error:
        raise GrammarError(_reason(reasons[0]))


def check_matcher(matcher: LLMatcher) -> None:
    """Raises `GrammarError` when a matcher was given what it cannot follow."""
    if matcher.is_error():
        raise GrammarError(_reason(matcher.get_error()))


def _grammar_of(constraint: StructuredOutputsParams) -> str:
    match constraint.constraint:
        case "json":
            return LLMatcher.grammar_from_json_schema(str(constraint.json), defaults=_JSON_OPTIONS)
        case "json_object":
            return LLMatcher.grammar_from_json_schema('{"type": "object"}', defaults=_JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.regex or "")
        case "choice":
            texts = (json.dumps(text, ensure_ascii=False) for text in constraint.choice or ())
            return LLMatcher.grammar_from_lark(f"start: {' | '.join(texts)}")
        case _:
            text = constraint.grammar or ""
            return grammar_from("gbnf" if _RULE_OF_EBNF.search(text) else "lark", text)


def _after_reasoning(reasoning: Reasoning, answer: str, token_id_of: TokenIdOf) -> str:
    """A grammar that leaves the text before the answer free, in the library's list of grammars that name one another."""
    start = "start: before @answer" if reasoning.begun else "start: before @answer | @answer"
    rules = [
        start,
        f"before: {_opening(reasoning, token_id_of)} thought",
        *_thought(reasoning.closers, token_id_of),
    ]
    grammars = json.loads(answer)["grammars"] if answer.startswith("{") else [{"lark_grammar": answer}]
    grammars[0]["name"] = "answer"
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, *grammars]})


def _opening(reasoning: Reasoning, token_id_of: TokenIdOf) -> str:
    if not reasoning.openers:
        return ""
    openers = " | ".join(_marker(text, token_id_of) for text in reasoning.openers)
    return rf"(/[ \n]{{0,4}}/ ({openers}))" + ("?" if reasoning.begun else "")


def _thought(closers: Sequence[str], token_id_of: TokenIdOf) -> list[str]:
    """Rules of a text up to the first closing marker: a token ends it, or, of those that are text, the shortest match."""
    texts = [text for text in closers if token_id_of(text) is None]
    ways = [f"/(?s:.*)/ {_marker(text, token_id_of)}" for text in closers if text not in texts]
    if not texts:
        return [f"thought: {' | '.join(ways)}"]
    expression = "|".join(re.escape(text).replace("/", r"\/") for text in texts)
    return [f"thought: {' | '.join([*ways, 'closed'])}", f"closed[lazy]: /(?s:.*)({expression})/"]


def _marker(text: str, token_id_of: TokenIdOf) -> str:
    token_id = token_id_of(text)
    return json.dumps(text, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"


def _reason(text: str) -> str:
    """The library's words without the state that follows them."""
    reason = " ".join(text.partition("<state>")[0].split())
    return reason if len(reason) <= _MAX_REASON_LEN else reason[:_MAX_REASON_LEN] + " …"
