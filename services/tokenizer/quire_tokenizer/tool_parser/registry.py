"""The names of `--tool-call-parser`, which are vLLM's."""

from quire.errors import ConfigError
from quire_tokenizer.tool_parser import deepseek, enclosed, pythonic, xml_tool_parser
from quire_tokenizer.tool_parser.kimi_k2 import KimiK2ToolParser
from quire_tokenizer.tool_parser.llama3_json import Llama3JsonToolParser
from quire_tokenizer.tool_parser.mistral import MistralToolParser
from quire_tokenizer.tool_parser.parser import ToolParser

_PARSERS: dict[str, type[ToolParser]] = {
    "deepseek_v3": deepseek.DeepSeekV3ToolParser,
    "deepseek_v31": deepseek.DeepSeekV31ToolParser,
    "deepseek_v32": xml_tool_parser.DeepSeekV32ToolParser,
    "glm45": xml_tool_parser.Glm45ToolParser,
    "glm47": xml_tool_parser.Glm45ToolParser,
    "granite": enclosed.GraniteToolParser,
    "granite-20b-fc": enclosed.Granite20bFcToolParser,
    "granite4": enclosed.HermesToolParser,
    "hermes": enclosed.HermesToolParser,
    "hunyuan_a13b": enclosed.JambaToolParser,
    "internlm": enclosed.InternLm2ToolParser,
    "jamba": enclosed.JambaToolParser,
    "kimi_k2": KimiK2ToolParser,
    "lfm2": pythonic.Lfm2ToolParser,
    "llama3_json": Llama3JsonToolParser,
    "llama4_json": Llama3JsonToolParser,
    "llama4_pythonic": pythonic.Llama4PythonicToolParser,
    "longcat": enclosed.LongcatToolParser,
    "minimax_m2": xml_tool_parser.MinimaxM2ToolParser,
    "mistral": MistralToolParser,
    "olmo3": pythonic.Olmo3ToolParser,
    "phi4_mini_json": enclosed.Phi4MiniJsonToolParser,
    "pythonic": pythonic.PythonicToolParser,
    "qwen3_coder": xml_tool_parser.Qwen3CoderToolParser,
    "qwen3_xml": xml_tool_parser.Qwen3CoderToolParser,
    "seed_oss": xml_tool_parser.SeedOssToolParser,
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
