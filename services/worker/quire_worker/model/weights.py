"""The weights of a decoder: from safetensors files, sharded or not, or seeded at random.

Projections that read the same input are fused on loading (q, k, v; gate, up), so that a layer has four matrix
products. Linear weights are `[out, in]`, as torch has them, in whatever layout `quire_kernels.linear` reads fastest.

The weights of the norms before qkv and gate_up are multiplied into these, so that a norm between two attentions is a factor
for each row and no more: a product can take the residual itself and scale its results, without a second tensor of rows that
were scaled by a weight. What is rounded for it is the weight, once, on loading, instead of those rows in every step. The last
norm keeps its weight, as the matrix behind it may be the embedding too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quire_kernels import pack_linear_weight
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quire.errors import ConfigError
from quire_worker.model.config import ModelConfig

_DUMMY_SCALE = 0.02

Source = Callable[[str, tuple[int, ...]], Tensor]
"""Gives the tensor of a name and shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer."""

    qkv: Tensor  # [q + 2 kv, hidden], times the norm before it
    qkv_bias: Tensor | None
    q_norm: Tensor | None  # [head_dim]
    k_norm: Tensor | None
    o: Tensor  # [hidden, q]
    o_bias: Tensor | None
    gate_up: Tensor  # [2 intermediate, hidden], times the norm before it
    gate_up_bias: Tensor | None
    down: Tensor  # [hidden, intermediate]
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A whole decoder."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden]
    lm_head: Tensor  # [vocab, hidden]; of the embedding where they are tied


def load_weights(config: ModelConfig, directory: Path, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights from the directory's safetensors files. Raises `ConfigError` naming a tensor that is missing or odd."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ConfigError(f"--model: {directory} has no *.safetensors file", field="model")
    file_of_name: dict[str, Path] = {}
    handles: dict[Path, Any] = {}
    for file in files:
        handles[file] = _open(file)
        file_of_name.update(dict.fromkeys(handles[file].keys(), file))

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in file_of_name:
            raise ConfigError(f"--model: tensor {name} is missing from {directory}", field="model")
        tensor = handles[file_of_name[name]].get_tensor(name)
        if tuple(tensor.shape) != shape:
            raise ConfigError(
                f"--model: tensor {name} has shape {list(tensor.shape)}, config.json asks for {list(shape)}",
                field="model",
            )
        return tensor.to(device=device, dtype=dtype)

    return _assemble(config, read)


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"--model: {file} is no safetensors file: {error}", field="model") from error


def dummy_weights(config: ModelConfig, seed: int, dtype: torch.dtype, device: torch.device) -> Weights:
    """Seeded random weights of the right shapes, for measurements without a download."""
    generator = torch.Generator(device=device).manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=dtype, device=device)
        tensor = torch.empty(shape, dtype=dtype, device=device)
        return tensor.normal_(0.0, _DUMMY_SCALE, generator=generator)

    return _assemble(config, draw)


def empty_weights(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Weights:
    """Weights of the right shapes that nobody has filled."""
    return _assemble(config, lambda name, shape: torch.empty(shape, dtype=dtype, device=device))


def _assemble(config: ModelConfig, source: Source) -> Weights:
    vocab = (config.vocab_size, config.hidden_size)
    embedding = source("model.embed_tokens.weight", vocab)
    return Weights(
        embedding=embedding,
        layers=tuple(_layer(config, source, f"model.layers.{i}.") for i in range(config.num_hidden_layers)),
        norm=source("model.norm.weight", (config.hidden_size,)),
        lm_head=pack_linear_weight(
            embedding if config.tie_word_embeddings else source("lm_head.weight", vocab)
        ),
    )


def _layer(config: ModelConfig, source: Source, prefix: str) -> LayerWeights:
    hidden, inner, head = config.hidden_size, config.intermediate_size, (config.head_dim,)
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    parts = (("q_proj", config.q_size), ("k_proj", config.kv_size), ("v_proj", config.kv_size))
    halves = (("gate_proj", inner), ("up_proj", inner))

    def fused(where: str, projections: tuple[tuple[str, int], ...], norm: str) -> Tensor:
        weight = torch.cat([source(f"{where}{name}.weight", (size, hidden)) for name, size in projections])
        # In place and with no copy in float32, in which torch takes products of narrower types all the same.
        return pack_linear_weight(weight.mul_(source(f"{prefix}{norm}.weight", (hidden,))))

    def fused_bias(where: str, projections: tuple[tuple[str, int], ...]) -> Tensor:
        return torch.cat([source(f"{where}{name}.bias", (size,)) for name, size in projections])

    return LayerWeights(
        qkv=fused(attention, parts, "input_layernorm"),
        qkv_bias=fused_bias(attention, parts) if config.qkv_bias else None,
        q_norm=source(attention + "q_norm.weight", head) if config.qk_norm else None,
        k_norm=source(attention + "k_norm.weight", head) if config.qk_norm else None,
        o=pack_linear_weight(source(attention + "o_proj.weight", (hidden, config.q_size))),
        o_bias=source(attention + "o_proj.bias", (hidden,)) if config.o_bias else None,
        gate_up=fused(mlp, halves, "post_attention_layernorm"),
        gate_up_bias=fused_bias(mlp, halves) if config.mlp_bias else None,
        down=pack_linear_weight(source(mlp + "down_proj.weight", (hidden, inner))),
        down_bias=source(mlp + "down_proj.bias", (hidden,)) if config.mlp_bias else None,
    )
