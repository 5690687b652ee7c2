"""Rotary tables: the cosine and sine of every position, with the scalings of the field.

Linear scaling: Chen et al. 2023; dynamic NTK: its fixed form, computed once from the longest context; llama3: the
Llama 3.1 release; YaRN: Peng et al. 2023. Formulas agree with those of Hugging Face transformers, against which they
are tested.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quire.errors import ConfigError


def rotary_table(
    rope: Mapping[str, Any], *, head_dim: int, max_position_embeddings: int, max_model_len: int
) -> Tensor:
    """Float32 `[max_model_len, head_dim]`: cosines in the first half, sines in the second.

    Raises `ConfigError` for a rope type that is not known.
    """
    frequencies, attention_factor = _frequencies(rope, head_dim, max_position_embeddings, max_model_len)
    angles = torch.outer(torch.arange(max_model_len, dtype=torch.float32), frequencies)
    return torch.cat((angles.cos() * attention_factor, angles.sin() * attention_factor), dim=1)


def _frequencies(
    rope: Mapping[str, Any], head_dim: int, max_positions: int, max_model_len: int
) -> tuple[Tensor, float]:
    base, factor = float(rope["rope_theta"]), float(rope.get("factor") or 1.0)
    match rope["rope_type"]:
        case "default":
            return _inverse_frequencies(base, head_dim), 1.0
        case "linear":
            return _inverse_frequencies(base, head_dim) / factor, 1.0
        case "dynamic":
            length = max(max_model_len, max_positions)
            stretch = factor * length / max_positions - (factor - 1)
            return _inverse_frequencies(base * stretch ** (head_dim / (head_dim - 2)), head_dim), 1.0
        case "llama3":
            return _llama3(rope, _inverse_frequencies(base, head_dim), factor, max_positions), 1.0
        case "yarn":
            return _yarn(rope, base, head_dim, max_positions)
        case unknown:
            raise ConfigError(
                f"rope_type={unknown}: must be default, linear, dynamic, llama3 or yarn", field="model"
            )


def _inverse_frequencies(base: float, head_dim: int) -> Tensor:
    return 1.0 / (base ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim))


def _llama3(rope: Mapping[str, Any], frequencies: Tensor, factor: float, max_positions: int) -> Tensor:
    """Long wavelengths are stretched, short ones kept, those between blended."""
    original = rope.get("original_max_position_embeddings") or max_positions
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > original / low, frequencies / factor, frequencies)
    smooth = (original / wavelengths - low) / (high - low)
    blended = (1 - smooth) * stretched / factor + smooth * stretched
    is_between = ~(wavelengths < original / high) & ~(wavelengths > original / low)
    return torch.where(is_between, blended, stretched)


def _yarn(rope: Mapping[str, Any], base: float, head_dim: int, max_positions: int) -> tuple[Tensor, float]:
    """Low frequencies are interpolated, high ones kept, with a ramp between; attention is sharpened."""
    original = rope.get("original_max_position_embeddings") or max_positions
    factor = float(rope.get("factor") or max_positions / original)

    def dimension(num_rotations: float) -> float:
        return head_dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    kept = _inverse_frequencies(base, head_dim)
    return kept / factor * ramp + kept * (1 - ramp), _yarn_attention_factor(rope, factor)


def _yarn_attention_factor(rope: Mapping[str, Any], factor: float) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return _yarn_scale(factor, rope["mscale"]) / _yarn_scale(factor, rope["mscale_all_dim"])
    return _yarn_scale(factor, 1.0)


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
