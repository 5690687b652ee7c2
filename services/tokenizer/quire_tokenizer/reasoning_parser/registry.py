"""The names of `--reasoning-parser`, which are vLLM's."""

from quire.errors import ConfigError
from quire_tokenizer.reasoning_parser.parser import ReasoningParser


class Qwen3ReasoningParser(ReasoningParser):
    """Qwen3 and its likes: `<think>` opens the text, or the prompt, or there is none."""


class DeepSeekR1ReasoningParser(ReasoningParser):
    """DeepSeek-R1, QwQ and their likes: they think from the start, and need not write `<think>`."""

    thinks_from_start = True


_PARSERS: dict[str, type[ReasoningParser]] = {
    "deepseek_r1": DeepSeekR1ReasoningParser,
    "qwen3": Qwen3ReasoningParser,
}


def reasoning_parser(name: str) -> type[ReasoningParser]:
    """The parser of a name. Raises `ConfigError`."""
    if name not in _PARSERS:
        raise ConfigError(
            f"--reasoning-parser={name}: no such parser; known: {', '.join(reasoning_parser_names())}",
            field="reasoning_parser",
        )
    return _PARSERS[name]


def reasoning_parser_names() -> list[str]:
    """All names, sorted."""
    return sorted(_PARSERS)
