"""Tiny random models in Hugging Face form: the reference of the tests and the directory that the worker loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quire_worker.loading import LoadedModel, load_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from quire.config import WorkerConfig

VOCAB_SIZE = 320
MAX_MODEL_LEN = 768

_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A reference model and the directory that holds it."""

    reference: PreTrainedModel
    directory: Path


def make_tiny_model(directory: Path, family: str = "llama", seed: int = 0, **settings: Any) -> TinyModel:
    """Random weights of ordinary scale: biases and norms are random too, so that forgetting one shows."""
    make_config, make_model = _CLASSES[family]
    config = make_config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=None,
        pad_token_id=None,
        dtype="float32",
        **{
            "vocab_size": VOCAB_SIZE,
            "eos_token_id": 1,
            "max_position_embeddings": MAX_MODEL_LEN,
            "head_dim": 16,
            "tie_word_embeddings": False,
        }
        | settings,
    )
    torch.manual_seed(seed)
    model = make_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.normal_(0.0, 0.125)
    model.save_pretrained(directory, max_shard_size="40KB" if settings.get("tie_word_embeddings") else "5GB")
    return TinyModel(model, directory)


def fix_dynamic_rope(model: PreTrainedModel, max_model_len: int) -> None:
    """Sets a dynamically scaled reference to the frequencies of `max_model_len`, for every length."""
    rotary = model.model.rotary_emb
    frequencies, _ = ROPE_INIT_FUNCTIONS["dynamic"](model.config, torch.device("cpu"), seq_len=max_model_len)
    rotary.rope_type = "default"  # otherwise each forward pass chooses frequencies by its own length
    rotary.inv_freq = frequencies


def load_tiny(directory: Path, **settings: Any) -> LoadedModel:
    """The worker's load of a directory, float32 on the CPU."""
    defaults = {"max_num_seqs": 32, "max_num_batched_tokens": 256, "num_gpu_blocks_override": 2048}
    return load_model(
        WorkerConfig(model=str(directory), device="cpu", dtype="float32", **(defaults | settings))
    )
