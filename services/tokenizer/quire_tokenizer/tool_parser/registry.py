"""The names of `--tool-call-parser`, which are vLLM's."""

from quire.errors import ConfigError
from quire_tokenizer.tool_parser.hermes import HermesToolParser
from quire_tokenizer.tool_parser.llama3_json import Llama3JsonToolParser
from quire_tokenizer.tool_parser.parser import ToolParser

_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesToolParser,
    "llama3_json": Llama3JsonToolParser,
    "llama4_json": Llama3JsonToolParser,
}


def tool_parser(name: str) -> type[ToolParser]:
    """The parser of a name. Raises `ConfigError`."""
    if name not in _PARSERS:
        raise ConfigError(
            f"--tool-call-parser={name}: no such parser; known: {', '.join(tool_parser_names())}",
            field="tool_call_parser",
        )
    return _PARSERS[name]


def tool_parser_names() -> list[str]:
    """All names, sorted."""
    return sorted(_PARSERS)
