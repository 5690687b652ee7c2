"""Flags that users of vLLM know and that this version does not build: refused by name, never ignored.

A value that asks for what there is anyway is taken.
"""

import argparse

from quire.errors import ConfigError

_FEATURES = {
    "tensor_parallel_size": "tensor parallelism",
    "pipeline_parallel_size": "pipeline parallelism",
    "data_parallel_size": "data parallelism inside one stack",
    "distributed_executor_backend": "workers under Ray or multiprocessing",
    "quantization": "quantization",
    "speculative_model": "speculative decoding",
    "speculative_config": "speculative decoding",
    "num_speculative_tokens": "speculative decoding",
    "lora_modules": "LoRA adapters",
    "swap_space": "swapping KV blocks to host memory",
    "cpu_offload_gb": "weights in host memory",
    "kv_transfer_config": "moving KV blocks between engines",
    "compilation_config": "torch.compile",
    "hf_overrides": "overriding a model's config",
    "rope_scaling": "overriding a model's config",
    "limit_mm_per_prompt": "images, audio and video",
    "runner": "models that do not generate",
    "task": "models that do not generate",
    "tokenizer_mode": "tokenizers of other kinds",
}

_SWITCHES = {
    "enable_lora": "LoRA adapters",
    "trust_remote_code": "running code that a model brings",
    "disable_sliding_window": "attention windows",
    "no_enable_chunked_prefill": "steps without chunked prefill",
    "no_async_scheduling": "lockstep by this name; --pipeline-depth 1 asks for it",
    "skip_tokenizer_init": "a front door without a tokenizer",
}

_OFF = {
    "tensor_parallel_size": ("1",),
    "pipeline_parallel_size": ("1",),
    "data_parallel_size": ("1",),
    "swap_space": ("0",),
    "cpu_offload_gb": ("0",),
    "runner": ("auto", "generate"),
    "task": ("auto", "generate"),
    "tokenizer_mode": ("auto", "hf"),
}
"""Values that ask for what there is anyway."""

_AS_IT_IS = ("enable_chunked_prefill", "async_scheduling", "disable_log_requests", "disable_log_stats")
"""Switches that ask for what there is anyway."""


def add_refused_flags(parser: argparse.ArgumentParser) -> None:
    """Makes the parser know the flags, so that `refuse` can say why they are refused."""
    for name in _FEATURES:
        parser.add_argument(_flag(name), nargs="?", const="", help=argparse.SUPPRESS)
    for name in (*_SWITCHES, *_AS_IT_IS):
        parser.add_argument(_flag(name), action="store_const", const="", help=argparse.SUPPRESS)


def refuse(options: argparse.Namespace) -> None:
    """Takes the flags out of `options` again. Raises `ConfigError` naming one that was given."""
    for name in _AS_IT_IS:
        vars(options).pop(name)
    for name, feature in (_FEATURES | _SWITCHES).items():
        value = vars(options).pop(name)
        if value is not None and value not in _OFF.get(name, ()):
            shown = f"{_flag(name)}={value}" if value else _flag(name)
            raise ConfigError(f"{shown}: not built yet: {feature}", field=name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
