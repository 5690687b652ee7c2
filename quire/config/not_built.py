"""Flags that users of vLLM know and that this version does not build yet: refused by name, never ignored."""

import argparse

from quire.errors import ConfigError

_FEATURES = {
    "tensor_parallel_size": "tensor parallelism",
    "pipeline_parallel_size": "pipeline parallelism",
    "quantization": "quantization",
    "speculative_model": "speculative decoding",
    "speculative_config": "speculative decoding",
    "enable_lora": "LoRA adapters",
    "swap_space": "swapping KV blocks to host memory",
}

_OFF = {"tensor_parallel_size": "1", "pipeline_parallel_size": "1", "swap_space": "0"}
"""Values that ask for what there is anyway."""


def add_refused_flags(parser: argparse.ArgumentParser) -> None:
    """Makes the parser know the flags, so that `refuse` can say why they are refused."""
    for name in _FEATURES:
        parser.add_argument(_flag(name), nargs="?", const="", help=argparse.SUPPRESS)


def refuse(options: argparse.Namespace) -> None:
    """Takes the flags out of `options` again. Raises `ConfigError` naming one that was given."""
    for name, feature in _FEATURES.items():
        value = vars(options).pop(name)
        if value is not None and value != _OFF.get(name):
            shown = f"{_flag(name)}={value}" if value else _flag(name)
            raise ConfigError(f"{shown}: not built yet: {feature}", field=name)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
