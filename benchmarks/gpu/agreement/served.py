"""Greedy texts with log-probabilities from the served code path, in this process. Knows no reference."""

import gc
import random
from typing import Any

import torch
from quire_scheduler.core import Sampling
from quire_worker.loading import LoadedModel, load_model

from quire.config import WorkerConfig
from tests.doubles.in_process_engine import InProcessEngine, Output

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
_KV_BYTES = 2**30 if ON_GPU else 2**26


def load(directory: object, **flags: Any) -> LoadedModel:
    """The worker's load of a model directory, with a cache that leaves room for a reference beside it."""
    free_memory()
    defaults = {"max_num_seqs": 64, "max_num_batched_tokens": 1024, "kv_cache_memory_bytes": _KV_BYTES}
    return load_model(WorkerConfig(model=str(directory), **(defaults | flags)))


def generate(loaded: LoadedModel, prompts: list[list[int]], sampling: list[Sampling]) -> list[Output]:
    """Outputs of requests that run together, in their order."""
    engine = InProcessEngine.of(loaded)
    handles = [engine.add(prompt, params) for prompt, params in zip(prompts, sampling, strict=True)]
    outputs = engine.run()
    return [outputs[handle, 0] for handle in handles]


def random_prompts(seed: int, vocab_size: int, lengths: list[int]) -> list[list[int]]:
    """Prompts of the given lengths; every third begins with the same 40 tokens, so that prefixes are shared."""
    draw = random.Random(seed)
    shared = draw.choices(range(vocab_size), k=40)
    prompts = [draw.choices(range(vocab_size), k=length) for length in lengths]
    return [
        shared + prompt[40:] if number % 3 == 2 and len(prompt) > 40 else prompt
        for number, prompt in enumerate(prompts)
    ]


def free_memory() -> None:
    """Gives back what an earlier model held."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
