"""Sampled tokens against the reference sampler, given the same logits."""

import torch
from quire_kernels import SamplingTensors, sample
from quire_kernels.sampling import reference
from torch import Tensor

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.served import DEVICE, ON_GPU

_NUM_ROWS = 256 if ON_GPU else 32
_VOCAB_SIZES = (151_936, 128_256, 32_768, 1_000) if ON_GPU else (32_768, 1_000)


def check_sampler() -> list[Outcome]:
    """Rows of every mixture of masks, over the vocabularies of the field."""
    outcomes: list[Outcome] = []
    for vocab_size in _VOCAB_SIZES:
        for spread in (1.0, 6.0):
            num_equal = _num_equal(vocab_size, spread)
            outcomes.append(
                Outcome(
                    check=f"sampler, vocabulary {vocab_size}, logits spread by {spread:g}",
                    passed=num_equal == _NUM_ROWS,
                    detail=f"{num_equal} of {_NUM_ROWS} rows drew the reference's token",
                )
            )
    return outcomes


def _num_equal(vocab_size: int, spread: float) -> int:
    generator = torch.Generator().manual_seed(vocab_size)
    logits = (spread * torch.randn(_NUM_ROWS, vocab_size, generator=generator)).to(DEVICE)
    params = _params(generator)
    return int((sample(logits.clone(), params) == reference.sample(logits, params)).sum())


def _params(generator: torch.Generator) -> SamplingTensors:
    def pick(*values: float, dtype: torch.dtype) -> Tensor:
        index = torch.randint(len(values), (_NUM_ROWS,), generator=generator)
        return torch.tensor(values, dtype=dtype)[index].to(DEVICE)

    rows = torch.arange(_NUM_ROWS, device=DEVICE)
    return SamplingTensors(
        temperature=pick(0.0, 0.3, 0.6, 1.0, 1.7, dtype=torch.float32),
        top_k=pick(0, 1, 5, 50, 1000, dtype=torch.int32),
        top_p=pick(1.0, 0.9, 0.5, 0.05, dtype=torch.float32),
        min_p=pick(0.0, 0.02, 0.3, dtype=torch.float32),
        seed=rows * 7919 - 3,
        sequence_index=(rows % 3).int(),
        position=(rows * 31 % 4099).int(),
    )
