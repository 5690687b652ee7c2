"""Tool calls in generated text, in the formats of the models that write them."""

from quire_tokenizer.tool_parser.parser import ToolParser
from quire_tokenizer.tool_parser.registry import tool_parser, tool_parser_names

__all__ = ["ToolParser", "tool_parser", "tool_parser_names"]
