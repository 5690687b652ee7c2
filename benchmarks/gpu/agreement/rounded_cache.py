"""An 8-bit KV cache against a bfloat16 one, bounded by what the same rounding does to `transformers`.

How far rounded keys and values move a log-probability is a matter of the model, so no figure would hold for all of them:
the reference is run with and without its keys and values rounded to the cache's type, in bfloat16 on the same weights
and tokens, and what it shows bounds what the worker may.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from quire_scheduler.core import Sampling
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.reference import random_model
from benchmarks.gpu.agreement.served import DEVICE, ON_GPU, generate, load, random_prompts
from benchmarks.gpu.model import QWEN3_0_6B
from tests.doubles.in_process_engine import Output

_LENGTHS = [1, 16, 17, 100, 255, 600, 900, 40, 333, 64, 3, 128]
_NUM_OUT = 32
_NUM_LOGPROBS = 20
_MEAN_SHARE, _LARGEST_SHARE = 1.25, 1.5
"""Bounds on the mean and the largest difference of a log-probability, as shares of the reference's own."""


class RoundedCache(DynamicCache):
    """Keeps keys and values as an 8-bit cache would hand them back."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *rest: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        rounded = (states.to(torch.float8_e4m3fn).to(states.dtype) for states in (key_states, value_states))
        return super().update(*rounded, *rest, **options)


def check_fp8() -> list[Outcome]:
    """Log-probabilities of the 20 likeliest tokens, greedy, at every position up to where the texts part."""
    name = "fp8 KV cache against bfloat16"
    if not ON_GPU:
        return [Outcome(check=name, passed=None, detail="8-bit caches need a GPU")]
    config = QWEN3_0_6B.config
    prompts = random_prompts(8, config["vocab_size"], _LENGTHS)
    with tempfile.TemporaryDirectory() as folder:
        reference = random_model(Path(folder), QWEN3_0_6B, config)
        exact, rounded = (_outputs(folder, prompts, kv_cache_dtype=dtype) for dtype in ("auto", "fp8"))
    ours = [d for a, b in zip(exact, rounded, strict=True) for d in _differences(a, b)]
    theirs = [
        d
        for prompt, output in zip(prompts, exact, strict=True)
        for d in _reference(reference, prompt, output)
    ]
    return [
        Outcome(
            check=name,
            passed=mean(ours) <= _MEAN_SHARE * mean(theirs) and max(ours) <= _LARGEST_SHARE * max(theirs),
            detail=f"{len(ours)} log-probabilities differ by {mean(ours):.4f} on average and {max(ours):.4f} at most; "
            f"in transformers {len(theirs)} by {mean(theirs):.4f} and {max(theirs):.4f} "
            f"(bounds: {_MEAN_SHARE} and {_LARGEST_SHARE} times these)",
        )
    ]


def _outputs(folder: str, prompts: list[list[int]], **flags: Any) -> list[Output]:
    loaded = load(folder, dtype="bfloat16", max_model_len=1024, **flags)
    sampling = Sampling(max_tokens=_NUM_OUT, temperature=0.0, num_logprobs=_NUM_LOGPROBS)
    return generate(loaded, prompts, [sampling] * len(prompts))


def _differences(a: Output, b: Output) -> Iterator[float]:
    """Of the log-probabilities that both report, up to and including the first token that differs."""
    for position, (left, right) in enumerate(zip(a.logprobs, b.logprobs, strict=True)):
        values = {token: value for token, value, _ in left}
        yield from (abs(values[token] - value) for token, value, _ in right if token in values)
        if a.token_ids[position] != b.token_ids[position]:
            return


@torch.inference_mode()
def _reference(reference: PreTrainedModel, prompt: list[int], output: Output) -> list[float]:
    """What rounding the cache does to the reference's likeliest tokens, at the positions of `output`."""
    tokens = torch.tensor([prompt + output.token_ids[:-1]], device=DEVICE)
    exact, rounded = (
        reference(tokens, past_key_values=cache, use_cache=True)
        .logits[0, len(prompt) - 1 :]
        .float()
        .log_softmax(-1)
        for cache in (DynamicCache(config=reference.config), RoundedCache(config=reference.config))
    )
    likeliest = exact.topk(_NUM_LOGPROBS, dim=-1).indices
    return (exact - rounded).gather(-1, likeliest).abs().flatten().tolist()
