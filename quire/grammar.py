"""Grammars of constraints, by the llguidance library: what a front door checks and a worker runs is compiled alike.

Knows no request and no vocabulary. Only services that compile import it: the package itself does without llguidance.
"""

import json
import re
from typing import TYPE_CHECKING

from llguidance import LLMatcher, LLParserLimits, grammar_from

from quire.structured_outputs import StructuredOutputsParams

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_RULE_OF_EBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)

_JSON_OPTIONS: "JsonCompileOptions" = {"whitespace_pattern": r"(\x20|\n\x20{0,16})"}
"""Between the parts of JSON one space, or a line break and its indentation: given more, small models draw nothing else."""

_MAX_REASON_LEN = 400


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


def grammar_of(constraint: StructuredOutputsParams) -> str:
    """The library's form of a constraint. Raises `GrammarError` when the text is not even of its kind."""
    try:
        return _grammar_of(constraint)
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


def _reason(text: str) -> str:
    """The library's words without the state that follows them."""
    reason = " ".join(text.partition("<state>")[0].split())
    return reason if len(reason) <= _MAX_REASON_LEN else reason[:_MAX_REASON_LEN] + " …"
