"""Small random models, written with transformers as a hub model would be."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

ORIGINAL_CONTEXT = 64
MAX_MODEL_LEN = 768

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": MAX_MODEL_LEN,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.25,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 12.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 12.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 12.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 12.0,
        "original_max_position_embeddings": ORIGINAL_CONTEXT,
    },
}


def model_config(architecture: str, *, rope: str = "default", tied: bool = False) -> PretrainedConfig:
    """A tiny config of the architecture."""
    sizes = {**SIZES, "tie_word_embeddings": tied, "rope_parameters": SCALINGS[rope]}
    if rope in ("linear", "dynamic"):
        sizes["max_position_embeddings"] = ORIGINAL_CONTEXT
    match architecture:
        case "llama":
            return LlamaConfig(**sizes)
        case "mistral":
            return MistralConfig(**sizes, sliding_window=64)
        case "qwen2":
            return Qwen2Config(**sizes, use_sliding_window=True, sliding_window=64, max_window_layers=1)
        case "qwen3":
            return Qwen3Config(**sizes, head_dim=32)
        case unknown:
            raise ValueError(unknown)


def write_model(
    directory: Path, config: PretrainedConfig, *, seed: int = 0, max_shard_size: str = "1GB"
) -> Any:
    """Writes a random model with untrivial biases and norms, and returns it in float32."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    return model


def fix_dynamic_rope(model: Any, max_model_len: int) -> None:
    """Sets the reference's dynamic scaling once from the longest context, as a server does."""
    rotary = model.model.rotary_emb
    if model.config.rope_parameters["rope_type"] != "dynamic":
        return
    inv_freq, rotary.attention_scaling = ROPE_INIT_FUNCTIONS["dynamic"](
        model.config, "cpu", seq_len=max_model_len
    )
    rotary.register_buffer("inv_freq", inv_freq, persistent=False)
    rotary.rope_type = "default"  # computed once: never again from a growing length
