"""The same requests through two variants of the worker: captured against eager, an fp8 cache against bfloat16, GPU against CPU."""

import dataclasses
import tempfile
from pathlib import Path
from statistics import mean

from quire_scheduler.core import Sampling
from quire_worker.loading import LoadedModel

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.served import ON_GPU, generate, load, random_prompts
from benchmarks.gpu.model import QWEN3_0_6B, Model, tiny
from quire.assets import shipped_model_path
from quire.config import WorkerConfig
from tests.doubles.in_process_engine import Output

_LENGTHS = [1, 16, 17, 100, 255, 600, 900, 40, 333, 64, 3, 128] * 2
_NUM_OUT = 32
_NUM_LOGPROBS = 20
_FP8_MEAN, _FP8_LARGEST = 0.02, 0.25
"""Bounds on how much an fp8 cache may move a log-probability among the 20 likeliest tokens."""


def check_graph() -> list[Outcome]:
    """Captured steps against the same steps launched kernel by kernel, at the same padded shapes."""
    name = "graph against eager, Qwen3-0.6B shape"
    if not ON_GPU:
        return [Outcome(check=name, passed=None, detail="nothing is captured on a CPU")]
    with tempfile.TemporaryDirectory() as folder:
        QWEN3_0_6B.write(Path(folder))
        loaded = load(folder, load_format="dummy", max_model_len=1024)
    captured = _outputs(loaded, QWEN3_0_6B)
    loaded.runner._graphs = None  # the shape table stays, so that padding is the same
    eager = _outputs(loaded, QWEN3_0_6B)
    num_equal = sum(
        a.token_ids == b.token_ids and a.logprobs == b.logprobs for a, b in zip(captured, eager, strict=True)
    )
    return [
        Outcome(
            check=name,
            passed=num_equal == len(captured),
            detail=f"{num_equal} of {len(captured)} sequences have the same tokens and bit-equal log-probabilities",
        )
    ]


def check_fp8() -> list[Outcome]:
    """Log-probabilities with an fp8 cache against those with a bfloat16 one, as long as the texts agree."""
    name = "fp8 KV cache against bfloat16"
    if not ON_GPU or "kv_cache_dtype" not in {each.name for each in dataclasses.fields(WorkerConfig)}:
        return [Outcome(check=name, passed=None, detail="needs a GPU and --kv-cache-dtype")]
    model = QWEN3_0_6B if ON_GPU else tiny(QWEN3_0_6B)
    with tempfile.TemporaryDirectory() as folder:
        model.write(Path(folder))
        flags = {"load_format": "dummy", "dtype": "bfloat16", "max_model_len": 1024}
        exact = _outputs(load(folder, **flags), model)
        rounded = _outputs(load(folder, **flags, kv_cache_dtype="fp8"), model)
    differences = [d for a, b in zip(exact, rounded, strict=True) for d in _differences(a, b)]
    return [
        Outcome(
            check=name,
            passed=mean(differences) <= _FP8_MEAN and max(differences) <= _FP8_LARGEST,
            detail=f"{len(differences)} log-probabilities differ by {mean(differences):.4f} on average (bound {_FP8_MEAN}) "
            f"and {max(differences):.4f} at most (bound {_FP8_LARGEST})",
        )
    ]


def check_device() -> list[Outcome]:
    """The shipped model in float32, greedy and seeded, on the GPU and on the CPU."""
    name = "GPU against CPU, shipped model, float32"
    if not ON_GPU:
        return [Outcome(check=name, passed=None, detail="there is no GPU")]
    lengths = [1 + 23 * number for number in range(16)]
    sampling = [
        Sampling(max_tokens=64, temperature=0.8 * (number % 2), top_p=0.95, seed=number)
        for number in range(16)
    ]
    texts: list[list[list[int]]] = []
    for device in ("cpu", "cuda"):
        loaded = load(shipped_model_path(), device=device, dtype="float32", max_num_seqs=16)
        prompts = random_prompts(7, loaded.spec.vocab_size, lengths)
        texts.append([output.token_ids for output in generate(loaded, prompts, sampling)])
    num_equal = sum(a == b for a, b in zip(*texts, strict=True))
    return [Outcome(check=name, passed=num_equal == 16, detail=f"{num_equal} of 16 sequences equal")]


def _outputs(loaded: LoadedModel, model: Model) -> list[Output]:
    """Half greedy, half seeded, with log-probabilities."""
    prompts = random_prompts(8, model.vocab_size, _LENGTHS)
    sampling = [
        Sampling(max_tokens=_NUM_OUT, temperature=0.7 * (number % 2), seed=number, num_logprobs=_NUM_LOGPROBS)
        for number in range(len(prompts))
    ]
    return generate(loaded, prompts, sampling)


def _differences(a: Output, b: Output) -> list[float]:
    """Of the log-probabilities that both report, up to and including the first token that differs."""
    differences: list[float] = []
    for position, (left, right) in enumerate(zip(a.logprobs, b.logprobs, strict=True)):
        values = {token: value for token, value, _ in left}
        differences += [abs(values[token] - value) for token, value, _ in right if token in values]
        if a.token_ids[position] != b.token_ids[position]:
            break
    return differences
