"""Greedy output is token for token that of transformers, whatever the schedule did to it.

The reference sees each prompt alone, followed by what was generated, in one forward pass: it agrees with every token
exactly when its own greedy decoding would have produced them.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from quire_scheduler.core import Sampling
from transformers import PreTrainedModel

from tests.worker.driver import Driver, Output
from tests.worker.tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, fix_dynamic_rope, load_tiny, make_tiny_model

_NUM_PROMPTS = 32
_MAX_PROMPT_LEN = 600
_TIE = 1e-5
_LOGPROB_TOLERANCE = 1e-4
_ORIGINAL = 64
"""Context before rope scaling, so short that most prompts are beyond it."""

_ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 12.0},
    "dynamic": {"rope_type": "dynamic", "factor": 12.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": _ORIGINAL,
    },
    "yarn": {"rope_type": "yarn", "factor": 12.0, "original_max_position_embeddings": _ORIGINAL},
}  # fmt: skip

_CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("llama", {}, 128),
    "llama-tied-biased": ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, 128),
    "mistral-window-64": ("mistral", {"sliding_window": 64}, 128),
    "qwen2": ("qwen2", {}, 128),
    "qwen2-window-from-layer-1": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}, 128,
    ),
    "qwen3": ("qwen3", {"head_dim": 32}, 128),
    "qwen3-tied": ("qwen3", {"tie_word_embeddings": True}, 128),
}  # fmt: skip
"""Family, settings, output tokens."""


@pytest.mark.parametrize("case", list(_CASES))
def test_architecture_agrees_with_transformers(case: str, tmp_path: Path) -> None:
    family, settings, num_outputs = _CASES[case]
    _check_agreement(tmp_path, family, settings, num_outputs)


@pytest.mark.parametrize("rope_type", list(_ROPES))
def test_scaled_rope_agrees_with_transformers(rope_type: str, tmp_path: Path) -> None:
    rope = {"rope_theta": 10000.0} | _ROPES[rope_type]
    positions = _ORIGINAL if rope_type in ("linear", "dynamic") else MAX_MODEL_LEN
    settings = {"rope_parameters": rope, "max_position_embeddings": positions}
    _check_agreement(tmp_path, "llama", settings, 128)


def _check_agreement(directory: Path, family: str, settings: dict[str, Any], num_outputs: int) -> None:
    tiny = make_tiny_model(directory, family, **settings)
    if settings.get("rope_parameters", {}).get("rope_type") == "dynamic":
        fix_dynamic_rope(tiny.reference, MAX_MODEL_LEN)
    loaded = load_tiny(directory, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=96)
    driver = Driver.of(loaded)
    prompts = _prompts()
    sampling = Sampling(max_tokens=num_outputs, temperature=0.0, num_logprobs=2)
    outputs = driver.generate([(prompt, sampling) for prompt in prompts])
    stats = driver.stats
    assert stats.num_preemptions >= 10
    assert stats.num_prefix_hit_tokens > 0
    assert max(plan.num_tokens for plan in driver.plans) <= 256 < _MAX_PROMPT_LEN, "prefill was not chunked"
    num_ties, num_tokens, worst = 0, 0, 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.token_ids) == num_outputs
        ties, error = _compare(tiny.reference, prompt, output)
        num_ties, num_tokens, worst = num_ties + ties, num_tokens + num_outputs, max(worst, error)
    print(
        f"{num_tokens} tokens, {num_ties} ties, log-probabilities within {worst:.1e}, "
        f"{stats.num_preemptions} preemptions, {stats.num_prefix_hit_tokens} prefix hit tokens, {stats.num_steps} steps"
    )
    assert num_ties * 1000 <= num_tokens
    assert worst <= _LOGPROB_TOLERANCE


def _prompts() -> list[list[int]]:
    """1 to 600 tokens; every third begins with the same 40 tokens."""
    draw = random.Random(5)
    shared = [draw.randrange(VOCAB_SIZE) for _ in range(40)]
    lengths = [1, 2, 15, 16, 17, _MAX_PROMPT_LEN, _MAX_PROMPT_LEN - 1]
    lengths += [draw.randint(1, 300) for _ in range(_NUM_PROMPTS - len(lengths))]
    prompts = [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]
    return [
        shared + prompt[40:] if i % 3 == 2 and len(prompt) > 40 else prompt
        for i, prompt in enumerate(prompts)
    ]


@torch.inference_mode()
def _compare(reference: PreTrainedModel, prompt: list[int], output: Output) -> tuple[int, float]:
    """(ties broken the other way, largest error of a log-probability). Fails on any other difference."""
    tokens = torch.tensor([prompt + output.token_ids[:-1]])
    logits = reference(tokens).logits[0, len(prompt) - 1 :].float()
    best_two = logits.topk(2, dim=1)
    logprobs = logits.log_softmax(dim=1)
    num_ties, worst = 0, 0.0
    for position, token in enumerate(output.token_ids):
        if token != best_two.indices[position, 0]:
            gap = float(best_two.values[position, 0] - best_two.values[position, 1])
            assert token == best_two.indices[position, 1], f"token {position} after {len(prompt)} differs"
            assert gap < _TIE, f"token {position} after {len(prompt)} differs by {gap}"
            num_ties += 1
        entries = output.logprobs[position]
        assert token in entries
        for entry, value in entries.items():
            worst = max(worst, abs(value - float(logprobs[position, entry])))
    return num_ties, worst
