"""What a decoder is made of, read from `config.json`. Architectures differ in data, not in code."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from quire.errors import ConfigError

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
"""What has no default in `config.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One decoder. Names are those of `config.json`."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    rope: Mapping[str, Any]
    """`rope_theta`, `rope_type` and what that type needs."""
    sliding_windows: tuple[int | None, ...]
    """Per layer: a query at position p sees keys in (p - window, p]; None sees all."""
    eos_token_ids: tuple[int, ...]
    dtype: str | None

    @property
    def q_size(self) -> int:
        """Width of all query heads."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads."""
        return self.num_key_value_heads * self.head_dim

    def shallow(self) -> "ModelConfig":
        """The first layers, as many as it takes to run every kernel: layers differ in their window alone, and the last in
        that none follows it.
        """
        num_layers = 1 + max(map(self.sliding_windows.index, set(self.sliding_windows)))
        num_layers = min(max(num_layers, 2), self.num_hidden_layers)
        return replace(self, num_hidden_layers=num_layers, sliding_windows=self.sliding_windows[:num_layers])


def parse_model_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The decoder that a `config.json` describes. Raises `ConfigError` naming what is not supported."""
    architecture = (raw.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"architectures={architecture}: must be one of {', '.join(ARCHITECTURES)}", field="model"
        )
    if raw.get("quantization_config"):
        raise ConfigError("quantization_config: quantized weights are not supported yet", field="model")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act={raw['hidden_act']}: must be silu", field="model")
    missing = [name for name in _REQUIRED if raw.get(name) is None]
    if missing:
        raise ConfigError(f"config.json does not say {', '.join(missing)}", field="model")
    num_heads = raw["num_attention_heads"]
    attention_bias = bool(raw.get("attention_bias", False))
    return ModelConfig(
        architecture=architecture,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_hidden_layers=raw["num_hidden_layers"],
        num_attention_heads=num_heads,
        num_key_value_heads=raw.get("num_key_value_heads") or num_heads,
        head_dim=raw.get("head_dim") or _head_dim(raw, architecture),
        rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
        max_position_embeddings=raw["max_position_embeddings"],
        tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
        qkv_bias=architecture == "Qwen2ForCausalLM" or attention_bias,
        o_bias=attention_bias and architecture != "Qwen2ForCausalLM",
        mlp_bias=bool(raw.get("mlp_bias", False)) and architecture == "LlamaForCausalLM",
        qk_norm=architecture == "Qwen3ForCausalLM",
        rope=_rope_of(raw),
        sliding_windows=_sliding_windows(raw, architecture),
        eos_token_ids=eos_token_ids(raw),
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
    )


def _head_dim(raw: Mapping[str, Any], architecture: str) -> int:
    """Of a file that does not say: Qwen3's is 128 whatever the hidden size."""
    if architecture == "Qwen3ForCausalLM":
        return 128
    return raw["hidden_size"] // raw["num_attention_heads"]


def eos_token_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    """The end-of-sequence tokens that a config names, as a list whatever its form."""
    eos = raw.get("eos_token_id")
    if eos is None:
        return ()
    return tuple(eos) if isinstance(eos, list) else (int(eos),)


def _rope_of(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as newer files have it, or `rope_theta` and `rope_scaling` as older ones do."""
    rope = dict(raw.get("rope_parameters") or raw.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in rope.values()):
        raise ConfigError("rope_parameters differ per layer type: not supported", field="model")
    rope.setdefault("rope_theta", raw.get("rope_theta", 10000.0))
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if raw.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = raw["original_max_position_embeddings"]
    if raw.get("partial_rotary_factor", rope.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ConfigError("partial_rotary_factor: must be 1", field="model")
    return rope


def _sliding_windows(raw: Mapping[str, Any], architecture: str) -> tuple[int | None, ...]:
    num_layers = raw["num_hidden_layers"]
    if architecture.startswith("Llama"):
        return (None,) * num_layers
    if architecture.startswith("Mistral"):
        window = raw.get("sliding_window", 4096)
        return (window,) * num_layers
    window = raw.get("sliding_window") if raw.get("use_sliding_window", False) else None
    if window is None:
        return (None,) * num_layers
    if raw.get("layer_types"):
        return tuple(window if kind == "sliding_attention" else None for kind in raw["layer_types"])
    first = raw.get("max_window_layers", 28)
    return tuple(window if layer >= first else None for layer in range(num_layers))
