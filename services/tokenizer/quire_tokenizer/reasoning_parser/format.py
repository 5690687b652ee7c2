"""The formats in which models write what they think."""

from quire_tokenizer.reasoning_parser.parser import ReasoningParser


class Qwen3ReasoningParser(ReasoningParser):
    """Qwen3: `<think>` opens the text, or the prompt ends with it, or there is none. A tool call ends the reasoning too."""

    answer_openers = ("<tool_call>\n<function=",)


class DeepSeekR1ReasoningParser(ReasoningParser):
    """DeepSeek-R1, QwQ: they think from the start, and need not write `<think>`."""

    thinks_from_start = True


class DeepSeekV3ReasoningParser(ReasoningParser):
    """DeepSeek V3.1 and V3.2: they think where the template is told to let them."""

    thinks_from_start = True
    switch = ("thinking", False)


class Glm45ReasoningParser(ReasoningParser):
    """GLM 4.5, Hunyuan, OLMo 3 and others that write both tags themselves."""


class GraniteReasoningParser(ReasoningParser):
    """Granite 3.2: in plain words."""

    openers = ("Here's my thought process:", "Here is my thought process:")
    closers = ("Here's my response:", "Here is my response:")
    switch = None
    needs_special_tokens = False


class KimiK2ReasoningParser(ReasoningParser):
    """Kimi K2 Thinking: its section of tool calls ends the reasoning too."""

    answer_openers = ("<|tool_calls_section_begin|>",)


class MinimaxM2ReasoningParser(ReasoningParser):
    """MiniMax-M2: always thinks, from the start."""

    thinks_from_start = True
    switch = None


class MistralReasoningParser(ReasoningParser):
    """Magistral and later."""

    openers = ("[THINK]",)
    closers = ("[/THINK]",)
    switch = None


class SeedOssReasoningParser(ReasoningParser):
    """Seed-OSS."""

    openers = ("<seed:think>",)
    closers = ("</seed:think>",)
    switch = None
