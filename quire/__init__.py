"""Quire serves large language models. Names are imported when they are first used: `import quire` itself is cheap."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quire.async_llm_engine import AsyncLLMEngine
    from quire.beam_search_params import BeamSearchParams
    from quire.engine_args import AsyncEngineArgs, EngineArgs
    from quire.errors import QuireError
    from quire.inputs import PromptType, TextPrompt, TokensPrompt
    from quire.llm import LLM
    from quire.outputs import BeamSearchOutput, BeamSearchSequence, CompletionOutput, Logprob, RequestOutput
    from quire.release import __version__
    from quire.sampling_params import RequestOutputKind, SamplingParams
    from quire.structured_outputs import StructuredOutputsParams

__all__ = [
    "LLM",
    "AsyncEngineArgs",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchSequence",
    "CompletionOutput",
    "EngineArgs",
    "Logprob",
    "PromptType",
    "QuireError",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
    "__version__",
]

_MODULE_OF = {
    "LLM": "llm",
    "AsyncEngineArgs": "engine_args",
    "AsyncLLMEngine": "async_llm_engine",
    "BeamSearchOutput": "outputs",
    "BeamSearchParams": "beam_search_params",
    "BeamSearchSequence": "outputs",
    "CompletionOutput": "outputs",
    "EngineArgs": "engine_args",
    "Logprob": "outputs",
    "PromptType": "inputs",
    "QuireError": "errors",
    "RequestOutput": "outputs",
    "RequestOutputKind": "sampling_params",
    "SamplingParams": "sampling_params",
    "StructuredOutputsParams": "structured_outputs",
    "TextPrompt": "inputs",
    "TokensPrompt": "inputs",
    "__version__": "release",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"quire.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
