"""Sampled tokens against the reference sampler, given the same logits, with every mixture of masks and penalties."""

import torch
from quire_kernels import SamplingTensors, sample
from quire_kernels.sampling import reference
from quire_kernels.sampling.bias import BiasTable
from quire_kernels.sampling.occurrence import OccurrenceTable
from quire_kernels.sampling.params import Penalties
from torch import Tensor

from benchmarks.gpu.agreement.outcome import Outcome
from benchmarks.gpu.agreement.served import DEVICE, ON_GPU

_NUM_ROWS = 256 if ON_GPU else 32
_VOCAB_SIZES = (151_936, 128_256, 32_768, 1_000) if ON_GPU else (32_768, 1_000)


def check_sampler() -> list[Outcome]:
    """Over the vocabularies of the field; every other row has seen tokens that penalties weigh down."""
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
    seen = [torch.randint(vocab_size, (2_000,), generator=generator).tolist() for _ in range(0, _NUM_ROWS, 2)]
    drawn = sample(logits.clone(), params, None, _penalties(vocab_size, seen, DEVICE))
    penalised = reference.penalise(logits.cpu(), _penalties(vocab_size, seen, "cpu")).to(DEVICE)
    return int((drawn == reference.sample(penalised, params)).sum())


def _penalties(vocab_size: int, seen: list[list[int]], device: str) -> Penalties:
    """Row i draws for slot i; even slots have seen 1,500 prompt tokens and 500 drawn ones."""
    table = OccurrenceTable(_NUM_ROWS, vocab_size, torch.device(device))
    table.admit(range(0, _NUM_ROWS, 2), seen, [1_500] * len(seen))
    rows = torch.arange(_NUM_ROWS, device=device)
    return Penalties(
        slots=rows.int(),
        repetition=torch.tensor([1.0, 1.3, 0.8], device=device)[rows % 3],
        frequency=torch.tensor([0.7, 0.0, -0.5, 0.1], device=device)[rows % 4],
        presence=torch.tensor([0.4, -1.1, 0.0, 0.0, 1.5], device=device)[rows % 5],
        occurrences=table,
        biases=BiasTable(_NUM_ROWS, vocab_size, torch.device(device)),
    )


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
