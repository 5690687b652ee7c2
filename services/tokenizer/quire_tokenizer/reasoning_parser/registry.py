"""The names of `--reasoning-parser`, which are vLLM's."""

from quire.errors import ConfigError
from quire_tokenizer.reasoning_parser import format as formats
from quire_tokenizer.reasoning_parser.parser import ReasoningParser

_PARSERS: dict[str, type[ReasoningParser]] = {
    "deepseek_r1": formats.DeepSeekR1ReasoningParser,
    "deepseek_v3": formats.DeepSeekV3ReasoningParser,
    "glm45": formats.Glm45ReasoningParser,
    "glm47": formats.Glm45ReasoningParser,
    "granite": formats.GraniteReasoningParser,
    "kimi_k2": formats.KimiK2ReasoningParser,
    "minimax_m2": formats.MinimaxM2ReasoningParser,
    "mistral": formats.MistralReasoningParser,
    "olmo3": formats.Glm45ReasoningParser,
    "qwen3": formats.Qwen3ReasoningParser,
    "seed_oss": formats.SeedOssReasoningParser,
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
