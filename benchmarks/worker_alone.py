"""Workloads A, B and C on the worker alone: the scheduler core and the worker's served code path in one process.

    python benchmarks/worker_alone.py A B C

Random weights (`--load-format dummy`), bfloat16, outputs forced to their lengths, prefix cache empty at the start, token
counts checked. A: 256 requests, 100 to 1,024 tokens in and out, uniform, temperature 0.6. B and C: 1,000 chat-like
requests, all at once, greedy, log-normal lengths (sigma 1.1 in, 0.9 out) clipped to 4…1,024 and scaled to means of 220
and 190. Prints tokens per second beside the floor of an NVIDIA H200.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / each) for each in (".", "services/scheduler", "services/worker", "kernels")]

from quire_scheduler.core import Sampling  # noqa: E402
from quire_worker.loading import load_model  # noqa: E402

from benchmarks.device_parity import QWEN3_0_6B, engine_of  # noqa: E402
from quire.config import WorkerConfig  # noqa: E402

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}
FLOORS = {"A": 38_100, "B": 71_200, "C": 15_600}
SEED = 1


def uniform_lengths() -> list[tuple[int, int]]:
    """Workload A: (prompt, output) lengths."""
    draw = random.Random(SEED)
    return [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(256)]


def chat_lengths() -> list[tuple[int, int]]:
    """Workloads B and C: (prompt, output) lengths."""
    draw = random.Random(SEED)
    columns = [_log_normal(draw, sigma, mean) for sigma, mean in ((1.1, 220), (0.9, 190))]
    return list(zip(*columns, strict=True))


def run(case: str) -> None:
    """Runs one workload and prints its row."""
    shape = LLAMA_8B if case == "C" else QWEN3_0_6B
    lengths = uniform_lengths() if case == "A" else chat_lengths()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape))
        config = WorkerConfig(
            model=folder,
            load_format="dummy",
            max_model_len=2048,
            max_num_seqs=1000,
            max_num_batched_tokens=8192,
        )
        engine = engine_of(load_model(config))
    draw = random.Random(SEED)
    for number, (num_in, num_out) in enumerate(lengths):
        prompt = [draw.randrange(shape["vocab_size"]) for _ in range(num_in)]
        temperature = 0.6 if case == "A" else 0.0
        engine.add(prompt, Sampling(max_tokens=num_out, temperature=temperature, seed=number))
    torch.cuda.synchronize()
    start = time.perf_counter()
    outputs = engine.run()
    seconds = time.perf_counter() - start
    num_tokens = sum(len(output.token_ids) for output in outputs.values())
    assert num_tokens == sum(num_out for _, num_out in lengths), "a request ended early"
    stats = engine.core.stats()
    rate = num_tokens / seconds
    print(
        f"{case}: {rate:,.0f} tok/s ({100 * rate / FLOORS[case]:.0f} % of the floor {FLOORS[case]:,}), {seconds:.1f} s, "
        f"{stats.num_steps} steps of {1000 * seconds / stats.num_steps:.2f} ms, {stats.num_preemptions} preemptions",
        flush=True,
    )


def _log_normal(draw: random.Random, sigma: float, mean: int) -> list[int]:
    """Clipped to 4…1,024, then scaled until the mean is right, as the clip allows."""
    raw = [draw.lognormvariate(0.0, sigma) for _ in range(1000)]
    scale = float(mean)
    for _ in range(50):
        lengths = [min(1024, max(4, round(scale * value))) for value in raw]
        scale *= mean / (sum(lengths) / len(lengths))
    return lengths


if __name__ == "__main__":
    for name in sys.argv[1:] or FLOORS:
        run(name)
        torch.cuda.empty_cache()
