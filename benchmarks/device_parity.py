"""The worker alone on a GPU: the same tokens as on the CPU, and the time of eager steps.

    python benchmarks/device_parity.py

Serves the shipped model in float32 on both devices, greedy and seeded, in one process with the scheduler core; then
times decode steps of a random Qwen3-0.6B-shaped model in bfloat16. Prints a short table.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / each) for each in (".", "services/scheduler", "services/worker", "kernels")]

from quire_scheduler.core import Sampling  # noqa: E402
from quire_worker.loading import LoadedModel, load_model  # noqa: E402

from quire.assets import shipped_model_path  # noqa: E402
from quire.config import WorkerConfig  # noqa: E402
from tests.doubles.in_process_engine import InProcessEngine  # noqa: E402

QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "eos_token_id": 151645,
    "torch_dtype": "bfloat16",
}


def engine_of(loaded: LoadedModel) -> InProcessEngine:
    """The core and the loaded runner in one process."""
    return InProcessEngine.of(loaded)


def shipped_model_tokens(device: str) -> dict[tuple[int, int], list[int]]:
    """Greedy and seeded texts of 16 prompts, in float32."""
    config = WorkerConfig(
        model=str(shipped_model_path()),
        device=device,
        dtype="float32",
        max_num_seqs=16,
        kv_cache_memory_bytes=2**28,
    )
    engine = engine_of(load_model(config))
    for number in range(16):
        prompt = [(7 * number + 3 * position) % 1000 + 3 for position in range(1 + 23 * number)]
        temperature = 0.0 if number % 2 == 0 else 0.8
        engine.add(prompt, Sampling(max_tokens=64, temperature=temperature, top_p=0.95, seed=number))
    return {key: output.token_ids for key, output in engine.run().items()}


def decode_step_ms(batch: int) -> float:
    """Median time of an eager decode step of the Qwen3-0.6B shape."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(QWEN3_0_6B))
        config = WorkerConfig(model=folder, load_format="dummy", max_model_len=1024, max_num_seqs=batch)
        engine = engine_of(load_model(config))
    for number in range(batch):
        engine.add([number + 5] * 100, Sampling(max_tokens=60, temperature=0.6, seed=number))
    times: list[float] = []
    while True:
        torch.cuda.synchronize()
        start = time.perf_counter()
        if not engine.step():
            break
        times.append(1000 * (time.perf_counter() - start))
    times = sorted(times[20:-5])
    return times[len(times) // 2]


def main() -> None:
    """Compares and measures."""
    torch.backends.cuda.matmul.allow_tf32 = False
    cpu, gpu = shipped_model_tokens("cpu"), shipped_model_tokens("cuda")
    num_equal = sum(cpu[key] == gpu[key] for key in cpu)
    print(f"sequences equal on CPU and GPU, float32: {num_equal} of {len(cpu)}")
    for key in cpu:
        if cpu[key] != gpu[key]:
            first = next(i for i, (a, b) in enumerate(zip(cpu[key], gpu[key], strict=False)) if a != b)
            print(f"  {key}: first difference at token {first}")
    for batch in (1, 64, 256):
        print(f"Qwen3-0.6B shape, bf16, batch {batch}: {decode_step_ms(batch):.2f} ms per eager step")


if __name__ == "__main__":
    main()
