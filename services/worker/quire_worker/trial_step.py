"""A trial of the largest step, before the cache is made: what memory steps need, or which step would fit.

Knows the device's memory, no cache and no weights.
"""

from dataclasses import replace

import torch

from quire.config import WorkerConfig
from quire.errors import ConfigError
from quire_worker.device_step import DeviceStep
from quire_worker.step_shape import StepShape

_GRAPH_BYTES = 512 * 2**20
"""Driver memory of a hundred graphs, with room."""


def measured_step_bytes(step: DeviceStep, largest: StepShape, config: WorkerConfig) -> int:
    """Peak memory of the largest step, beside weights and buffers; captured steps need it a second time.

    Raises `ConfigError`, with the size of a step that fits, where that one does not.
    """
    peak = _peak_bytes(step, largest)
    if peak is None:
        raise ConfigError(
            f"--max-num-batched-tokens={config.step_token_limit} and --max-num-seqs={config.max_num_seqs}: the device has no "
            f"room for such a step; {_what_fits(step, largest)}",
            field="max_num_batched_tokens",
        )
    return peak if config.enforce_eager else 2 * peak + _GRAPH_BYTES


def _peak_bytes(step: DeviceStep, shape: StepShape) -> int | None:
    """What a step takes while it runs; None where the device has not so much."""
    step.batch.load_padding(shape)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        step.run(shape)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return None
    finally:
        torch.cuda.empty_cache()
    return torch.cuda.max_memory_allocated() - before


def _what_fits(step: DeviceStep, shape: StepShape) -> str:
    """Halves a step that does not fit until it does."""
    while shape.num_tokens > 1:
        num_tokens = shape.num_tokens // 2
        shape = replace(shape, num_tokens=num_tokens, num_rows=min(shape.num_rows, num_tokens))
        if _peak_bytes(step, shape) is not None:
            return f"one of {shape.num_tokens} tokens and {shape.num_rows} sequences fits"
    return "not even one of a single token fits"
