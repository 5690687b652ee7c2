"""Writes and reads a model as the directory of files that Hugging Face, vLLM and Quire load.

It knows file names, configuration fields and safetensors; it does not know how the model was trained.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from byte_level_bpe import CHAT_TEMPLATE, END_OF_TEXT, TURN_END, TURN_START
from llama import LlamaForCausalLM, LlamaShape
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

DEFAULT_SAMPLING = {"do_sample": True, "temperature": 0.8, "top_p": 0.95}


def write_model_directory(
    directory: Path, name: str, shape: LlamaShape, weights: dict[str, Tensor], tokenizer: Tokenizer
) -> None:
    """Store the weights as bfloat16 beside the configuration, the tokenizer and the default sampling."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = {key: value.detach().to("cpu", torch.bfloat16).contiguous() for key, value in weights.items()}
    (directory / "model.safetensors").write_bytes(save(stored, metadata={"format": "pt"}))
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    end_of_text, turn_end = _token_id(tokenizer, END_OF_TEXT), _token_id(tokenizer, TURN_END)
    ends = {"bos_token_id": end_of_text, "pad_token_id": end_of_text}
    _write_json(directory / "config.json", _config(name, shape) | ends | {"eos_token_id": end_of_text})
    _write_json(
        directory / "generation_config.json",
        DEFAULT_SAMPLING | ends | {"eos_token_id": [end_of_text, turn_end]},
    )
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(shape))


def read_model_directory(directory: Path, device: torch.device) -> tuple[LlamaForCausalLM, Tokenizer]:
    """Load what `write_model_directory` wrote, in float32 and ready to evaluate."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    shape = LlamaShape(**{field.name: config[field.name] for field in dataclasses.fields(LlamaShape)})
    model = LlamaForCausalLM(shape)
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.to(device).eval(), Tokenizer.from_file(str(directory / "tokenizer.json"))


def _config(name: str, shape: LlamaShape) -> dict[str, Any]:
    return {
        "_name_or_path": name,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(shape),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def _tokenizer_config(shape: LlamaShape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": [TURN_START, TURN_END],
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    token_id = tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(f"tokenizer lacks the special token {token!r}")
    return token_id


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
