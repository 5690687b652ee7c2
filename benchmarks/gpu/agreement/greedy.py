"""Greedy tokens against `transformers` on the same random weights, in float32 and in bfloat16.

The reference sees each prompt followed by what was generated, in one forward pass: it agrees with every token exactly
when its own greedy decoding would have produced them. In float32 every token must be the reference's, save where its
two best logits are within 1e-5. In bfloat16 a token may differ from the float32 reference only where the gap of the two
best float32 logits is below the largest difference that `transformers` itself shows, in this run, between its bfloat16
and its float32 logits.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from quire_scheduler.core import Sampling
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.reference import random_model
from benchmarks.gpu.agreement.served import DEVICE, ON_GPU, generate, load, random_prompts
from benchmarks.gpu.model import LLAMA_3_1_8B, QWEN2_5_7B, QWEN3_0_6B, Model, tiny
from tests.doubles.in_process_engine import Output
from tests.worker.tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, fix_dynamic_rope, make_tiny_model

_TIE = 1e-5
_LENGTHS = [1, 2, 15, 16, 17, 600, 599, 31, 250, 64, 128, 100, 7, 333, 48, 49]
_NUM_OUT = 64
_ORIGINAL = 64
"""Context before rope scaling, so short that most prompts are beyond it."""

_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral, window 64": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {}),
    "qwen2, window from layer 1": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {"head_dim": 128}),
}  # fmt: skip
_ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 12.0},
    "dynamic": {"rope_type": "dynamic", "factor": 12.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 12.0, "original_max_position_embeddings": _ORIGINAL},
}  # fmt: skip
_SHAPES = {
    QWEN3_0_6B.name: (QWEN3_0_6B, 28),
    LLAMA_3_1_8B.name: (LLAMA_3_1_8B, 4),
    QWEN2_5_7B.name: (QWEN2_5_7B, 4),
}
"""Published shapes and how many of their layers are used, so that a float32 copy fits beside the rest."""


def check_float32() -> list[Outcome]:
    """Small models of every family, window and rope scaling."""
    cases = dict(_SMALL)
    for name, rope in _ROPES.items():
        positions = _ORIGINAL if name in ("linear", "dynamic") else MAX_MODEL_LEN
        rope_settings = {
            "rope_parameters": {"rope_theta": 10000.0} | rope,
            "max_position_embeddings": positions,
        }
        cases[f"llama, rope {name}"] = ("llama", rope_settings)
    return [_float32(name, family, {"head_dim": 64} | settings) for name, (family, settings) in cases.items()]


def check_bfloat16() -> list[Outcome]:
    """Published shapes, some of their layers."""
    return [_bfloat16(name, model, num_layers) for name, (model, num_layers) in _SHAPES.items()]


def _float32(name: str, family: str, settings: dict[str, Any]) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        small = make_tiny_model(Path(folder), family, **settings)
        if settings.get("rope_parameters", {}).get("rope_type") == "dynamic":
            fix_dynamic_rope(small.reference, MAX_MODEL_LEN)
        loaded = load(folder, dtype="float32", max_model_len=MAX_MODEL_LEN)
        prompts = random_prompts(5, VOCAB_SIZE, _LENGTHS)
        outputs = generate(loaded, prompts, [_greedy()] * len(prompts))
    reference = small.reference.to(DEVICE)
    gaps = [
        gap
        for prompt, output in zip(prompts, outputs, strict=True)
        for gap in _gaps(_logits(reference, prompt, output), output).values()
    ]
    num_tokens = _NUM_OUT * len(prompts)
    wrong = [gap for gap in gaps if gap >= _TIE]
    return Outcome(
        check=f"float32 greedy, {name}",
        passed=not wrong,
        detail=f"{num_tokens - len(gaps)} of {num_tokens} tokens equal, {len(gaps) - len(wrong)} ties within {_TIE}"
        + (f", largest gap of another token {max(wrong):.2e}" if wrong else ""),
    )


def _bfloat16(name: str, model: Model, num_layers: int) -> Outcome:
    config = (model.config | {"num_hidden_layers": num_layers}) if ON_GPU else tiny(model).config
    with tempfile.TemporaryDirectory() as folder:
        reference = random_model(Path(folder), model, config)
        loaded = load(folder, dtype="bfloat16", max_model_len=1024)
        prompts = random_prompts(6, config["vocab_size"], _LENGTHS)
        outputs = generate(loaded, prompts, [_greedy()] * len(prompts))
    pairs = list(zip(prompts, outputs, strict=True))
    rounded = [_logits(reference, prompt, output) for prompt, output in pairs]
    reference = reference.float()
    exact = [_logits(reference, prompt, output) for prompt, output in pairs]
    allowed = max(float((a - b).abs().max()) for a, b in zip(rounded, exact, strict=True))
    gaps = [
        gap
        for logits, (_, output) in zip(exact, pairs, strict=True)
        for gap in _gaps(logits, output).values()
    ]
    num_theirs = sum(
        len(_gaps_of(logits, other.argmax(1))) for logits, other in zip(exact, rounded, strict=True)
    )
    num_tokens = _NUM_OUT * len(prompts)
    return Outcome(
        check=f"bfloat16 greedy, {name} shape, {config['num_hidden_layers']} layers",
        passed=all(gap < allowed for gap in gaps),
        detail=f"{len(gaps)} of {num_tokens} tokens diverge from float32, largest gap {max(gaps, default=0.0):.4f}, "
        f"allowed {allowed:.4f}; transformers in bfloat16 diverges at {num_theirs}",
    )


def _greedy() -> Sampling:
    return Sampling(max_tokens=_NUM_OUT, temperature=0.0)


@torch.inference_mode()
def _logits(reference: PreTrainedModel, prompt: list[int], output: Output) -> Tensor:
    """The reference's logits at every generated position, `[num_out, vocab]` in float32."""
    tokens = torch.tensor([prompt + output.token_ids[:-1]], device=DEVICE)
    return reference(tokens).logits[0, len(prompt) - 1 :].float()


def _gaps(logits: Tensor, output: Output) -> dict[int, float]:
    """For every position where another token than the reference's came, the gap of its two best logits."""
    assert len(output.token_ids) == _NUM_OUT, "a text ended early"
    return _gaps_of(logits, torch.tensor(output.token_ids, device=logits.device))


def _gaps_of(logits: Tensor, tokens: Tensor) -> dict[int, float]:
    best = logits.topk(2, dim=1)
    # A tie has two best tokens: either is the reference's.
    chosen = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)
    differs = (chosen < best.values[:, 0]).nonzero().flatten().tolist()
    gaps = (best.values[:, 0] - chosen).tolist()
    return {position: gaps[position] for position in differs}
