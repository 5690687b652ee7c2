"""Greedy output is token for token that of transformers, whatever the schedule did to it.

The reference sees each prompt alone, followed by what was generated, in one forward pass: it agrees with every token
exactly when its own greedy decoding would have produced them.
"""

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
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
_NUM_OUTPUTS = 128
_NUM_BLOCKS = 128
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

_WINDOW = 64
_FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": _WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": _WINDOW, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": _WINDOW, "max_window_layers": 0, "head_dim": 32},
}
"""All have two query heads per key head. Qwen2 has a full layer below a windowed one, Qwen3 windows alone."""

_NO_WINDOW = {"sliding_window": None, "use_sliding_window": False, "layer_types": None}


@dataclass
class Tally:
    """What all cases together have shown."""

    num_tokens: int = 0
    num_ties: int = 0
    worst_error: float = 0.0
    fewest_preemptions: int = 1_000_000

    def __str__(self) -> str:
        return (
            f"greedy agreement: {self.num_tokens} tokens, of which {self.num_ties} ties, log-probabilities within "
            f"{self.worst_error:.1e}, at least {self.fewest_preemptions} preemptions a case"
        )


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Iterator[Tally]:
    """Is printed when the last case has ended, captured output or not."""
    tally = Tally()
    yield tally
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\n{tally}")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", list(_FAMILIES))
def test_architecture_agrees_with_transformers(family: str, tied: bool, tmp_path: Path, tally: Tally) -> None:
    settings = _FAMILIES[family] | {"tie_word_embeddings": tied}
    if family.startswith("qwen") and tied:
        settings |= _NO_WINDOW
    _check_agreement(tally, tmp_path, family, settings)


def test_biases_of_every_projection_agree_with_transformers(tmp_path: Path, tally: Tally) -> None:
    _check_agreement(tally, tmp_path, "llama", {"attention_bias": True, "mlp_bias": True})


@pytest.mark.parametrize("rope_type", list(_ROPES))
@pytest.mark.parametrize("family", list(_FAMILIES))
def test_scaled_rope_agrees_with_transformers(
    family: str, rope_type: str, tmp_path: Path, tally: Tally
) -> None:
    positions = _ORIGINAL if rope_type in ("linear", "dynamic") else MAX_MODEL_LEN
    rope = {"rope_theta": 10000.0} | _ROPES[rope_type]
    scaled = {"rope_parameters": rope, "max_position_embeddings": positions}
    _check_agreement(tally, tmp_path, family, _FAMILIES[family] | scaled)


def _check_agreement(tally: Tally, directory: Path, family: str, settings: dict[str, Any]) -> None:
    tiny = make_tiny_model(directory, family, **settings)
    if settings.get("rope_parameters", {}).get("rope_type") == "dynamic":
        fix_dynamic_rope(tiny.reference, MAX_MODEL_LEN)
    loaded = load_tiny(directory, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=_NUM_BLOCKS)
    driver = Driver.of(loaded)
    prompts = _prompts()
    sampling = Sampling(max_tokens=_NUM_OUTPUTS, temperature=0.0, num_logprobs=2)
    outputs = driver.generate([(prompt, sampling) for prompt in prompts])
    _check_schedule(driver)
    num_ties, worst = 0, 0.0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output.token_ids) == _NUM_OUTPUTS
        ties, error = _compare(tiny.reference, prompt, output)
        num_ties, worst = num_ties + ties, max(worst, error)
    num_tokens = len(prompts) * _NUM_OUTPUTS
    assert num_ties * 1000 <= num_tokens
    assert worst <= _LOGPROB_TOLERANCE
    tally.num_tokens += num_tokens
    tally.num_ties += num_ties
    tally.worst_error = max(tally.worst_error, worst)
    tally.fewest_preemptions = min(tally.fewest_preemptions, driver.stats.num_preemptions)
    for name in {"rope_parameters", "sliding_window"} & settings.keys():
        if settings[name] is not None:
            _check_that_it_matters(tiny.reference, name, prompts, outputs)


def _check_schedule(driver: Driver) -> None:
    """What may not change a token has happened: chunks, prefix hits, preemptions."""
    stats = driver.stats
    assert stats.num_preemptions >= 10
    assert stats.num_prefix_hit_tokens > 0
    assert max(plan.num_tokens for plan in driver.plans) <= 256 < _MAX_PROMPT_LEN, "prefill was not chunked"


def _check_that_it_matters(
    reference: PreTrainedModel, name: str, prompts: list[list[int]], outputs: list[Output]
) -> None:
    """Without the scaling, or the window, the same weights choose other tokens, so that the comparison can fail."""
    raw = reference.config.to_dict() | {"max_position_embeddings": MAX_MODEL_LEN}
    raw |= _NO_WINDOW if name == "sliding_window" else {name: {"rope_type": "default", "rope_theta": 10000.0}}
    bare = type(reference)(type(reference.config)(**raw)).eval()
    bare.load_state_dict(reference.state_dict())
    if name == "sliding_window":  # with the scaling as it was
        bare.model.rotary_emb = reference.model.rotary_emb
    longest = max(range(len(prompts)), key=lambda at: len(prompts[at]))
    logits = _logits(bare, prompts[longest], outputs[longest])
    assert logits.argmax(dim=1).tolist() != outputs[longest].token_ids, f"{name} changes nothing"


def _prompts() -> list[list[int]]:
    """1 to 600 tokens; every third begins with the same 40 tokens."""
    draw = random.Random(5)
    shared = [draw.randrange(VOCAB_SIZE) for _ in range(40)]
    lengths = [1, 2, 15, 16, 17, _MAX_PROMPT_LEN, _MAX_PROMPT_LEN - 1]
    lengths += [draw.randint(1, _MAX_PROMPT_LEN) for _ in range(_NUM_PROMPTS - len(lengths))]
    prompts = [[draw.randrange(VOCAB_SIZE) for _ in range(length)] for length in lengths]
    return [
        shared + prompt[40:] if i % 3 == 2 and len(prompt) > 40 else prompt
        for i, prompt in enumerate(prompts)
    ]


@torch.inference_mode()
def _logits(reference: PreTrainedModel, prompt: list[int], output: Output) -> torch.Tensor:
    """`[num_outputs, vocab]`: what the reference would have drawn each output token from."""
    tokens = torch.tensor([prompt + output.token_ids[:-1]])
    return reference(tokens).logits[0, len(prompt) - 1 :].float()


def _compare(reference: PreTrainedModel, prompt: list[int], output: Output) -> tuple[int, float]:
    """(ties broken the other way, largest error of a log-probability). Fails on any other difference."""
    logits = _logits(reference, prompt, output)
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
