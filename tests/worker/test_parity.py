"""Greedy tokens and log-probabilities are those of transformers, whatever the scheduler does meanwhile.

Each prompt of the reference runs alone. Ours run together, in chunks, with a prefix cache and with so few blocks that
sequences are preempted. A difference counts as agreement only where the reference's two best logits are closer than
1e-5; such cases are counted.
"""

import random
from pathlib import Path

import pytest
import torch
from quire_scheduler.core import GroupCapacity, Sampling
from quire_worker.loading import load_model

from quire.config import WorkerConfig
from tests.doubles.in_process_engine import InProcessEngine, Output
from tests.worker.models import MAX_MODEL_LEN, fix_dynamic_rope, model_config, write_model

NUM_PROMPTS = 32
NUM_TOKENS = 128
TIE = 1e-5
CASES = [
    ("llama", "default", True),
    ("llama", "linear", False),
    ("llama", "dynamic", False),
    ("llama", "llama3", True),
    ("llama", "yarn", False),
    ("mistral", "default", False),
    ("mistral", "yarn", False),
    ("qwen2", "default", True),
    ("qwen3", "default", False),
    ("qwen3", "yarn", True),
]


def _prompts() -> list[list[int]]:
    generator = random.Random(7)
    lengths = [1, 2, 15, 16, 17, 63, 64, 65, 600] + [
        generator.randint(1, 600) for _ in range(NUM_PROMPTS - 9)
    ]
    prompts = [[generator.randrange(3, 256) for _ in range(length)] for length in lengths]
    prompts[20] = prompts[8][:400] + prompts[20][:40]  # shares a prefix with the longest
    prompts[21] = prompts[8][:400] + prompts[21][:60]
    return prompts


@torch.inference_mode()
def _check_against_reference(model, prompt: list[int], output: Output) -> int:
    """Runs the reference over prompt and output at once; returns how many ties explain a difference."""
    tokens = output.token_ids
    logits = model(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float()
    best = logits.topk(2).values
    logprobs = logits.log_softmax(dim=1)
    num_ties = 0
    for position, token in enumerate(tokens):
        if token != int(logits[position].argmax()):
            gap = float(best[position, 0] - best[position, 1])
            assert gap < TIE, f"token {position} of a prompt of {len(prompt)}: {token}, gap {gap}"
            num_ties += 1
        ours = output.logprobs[position]
        assert ours[0][0] == token
        for token_id, value, _rank in ours:
            assert abs(value - float(logprobs[position, token_id])) < 1e-4
    return num_ties


@pytest.mark.parametrize(("architecture", "rope", "tied"), CASES)
def test_greedy_tokens_are_those_of_transformers(
    tmp_path: Path, architecture: str, rope: str, tied: bool
) -> None:
    model = write_model(tmp_path, model_config(architecture, rope=rope, tied=tied))
    fix_dynamic_rope(model, MAX_MODEL_LEN)
    loaded = load_model(
        WorkerConfig(
            model=str(tmp_path), max_model_len=MAX_MODEL_LEN, max_num_seqs=NUM_PROMPTS, max_num_batched_tokens=256,
            num_gpu_blocks_override=240, device="cpu",
        )
    )  # fmt: skip
    capacity = loaded.capacity
    engine = InProcessEngine(
        lambda plan: loaded.runner.execute(plan)(),
        GroupCapacity(
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_num_seqs=capacity.max_num_seqs,
            max_num_batched_tokens=capacity.max_num_batched_tokens,
            max_model_len=loaded.spec.max_model_len,
            vocab_size=loaded.spec.vocab_size,
        ),
    )
    prompts = _prompts()
    for prompt in prompts:
        engine.add(prompt, Sampling(max_tokens=NUM_TOKENS, temperature=0.0, num_logprobs=2))
    outputs = engine.run()
    stats = engine.core.stats()
    assert stats.num_preemptions >= 10
    assert stats.num_prefix_hit_tokens > 0
    num_ties = sum(
        _check_against_reference(model, prompt, outputs[handle, 0])
        for handle, prompt in enumerate(prompts, start=1)
    )
    assert all(len(output.token_ids) == NUM_TOKENS for output in outputs.values())
    print(
        f"{architecture} {rope}: {num_ties} ties in {NUM_PROMPTS * NUM_TOKENS} tokens, {stats.num_preemptions} preemptions"
    )
    assert num_ties <= NUM_PROMPTS * NUM_TOKENS / 1000
