"""Tiny random models in Hugging Face form: the reference of the tests and the directory that the worker loads."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from quire_worker.device_batch import DeviceBatch
from quire_worker.device_step import DeviceStep
from quire_worker.kv_cache import CacheShape, allocate_cache
from quire_worker.loading import LoadedModel, load_model
from quire_worker.model.config import parse_model_config
from quire_worker.model.decoder import Decoder
from quire_worker.model.rope import rotary_table
from quire_worker.model.weights import dummy_weights
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
from quire.model_files import read_json

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


def step_over(directory: Path, *, num_layers: int, max_num_tokens: int = 64) -> DeviceStep:
    """A step of up to four rows over the first layers, of other random weights, and no scheduler."""
    model = parse_model_config(read_json(directory / "config.json"))
    model = replace(model, num_hidden_layers=num_layers, sliding_windows=model.sliding_windows[:num_layers])
    device, dtype, max_model_len = torch.device("cpu"), torch.float32, 128
    cache = CacheShape(model=model, dtype=dtype, block_size=16)
    batch = DeviceBatch(
        max_num_seqs=4,
        max_num_tokens=max_num_tokens,
        max_blocks=max_model_len // cache.block_size,
        vocab_size=model.vocab_size,
        device=device,
    )
    rotary = rotary_table(
        model.rope,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        max_model_len=max_model_len,
    )
    decoder = Decoder(model, dummy_weights(model, 0, dtype, device), rotary)
    return DeviceStep(decoder, allocate_cache(cache, 8, device), batch, max_num_seqs=4)
