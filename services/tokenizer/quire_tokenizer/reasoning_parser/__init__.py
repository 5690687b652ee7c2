"""Reasoning in generated text, told apart from the answer that follows it."""

from quire_tokenizer.reasoning_parser.parser import ReasoningParser
from quire_tokenizer.reasoning_parser.registry import reasoning_parser, reasoning_parser_names

__all__ = ["ReasoningParser", "reasoning_parser", "reasoning_parser_names"]
