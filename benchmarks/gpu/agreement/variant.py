"""The same requests through two variants of the worker: captured against eager, GPU against CPU."""

import tempfile
from pathlib import Path

from quire_scheduler.core import Sampling
from quire_worker.loading import LoadedModel

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.served import ON_GPU, generate, load, random_prompts
from benchmarks.gpu.model import QWEN3_0_6B, Model
from quire.assets import shipped_model_path
from tests.doubles.in_process_engine import Output

_LENGTHS = [1, 16, 17, 100, 255, 600, 900, 40, 333, 64, 3, 128] * 2 + [960] * 4
_FLAGS = {"max_model_len": 1024, "max_num_batched_tokens": 8192, "kv_cache_memory_bytes": 2**31}
"""The prompts have more tokens than a step, so that the first one is full, which has a graph of its own."""

_NUM_OUT = 32
_NUM_LOGPROBS = 20


def check_graph() -> list[Outcome]:
    """Captured steps against the same steps launched kernel by kernel, at the same padded shapes."""
    name = "graph against eager, Qwen3-0.6B shape"
    if not ON_GPU:
        return [Outcome(check=name, passed=None, detail="nothing is captured on a CPU")]
    with tempfile.TemporaryDirectory() as folder:
        QWEN3_0_6B.write(Path(folder))
        loaded = load(folder, load_format="dummy", **_FLAGS)
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
