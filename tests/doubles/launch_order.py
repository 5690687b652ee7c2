"""Takes the forward pass of steps for a GPU that is not there: prints, as JSON, what each would launch, in order.

    python -m tests.doubles.launch_order 90

Nothing is compiled. Of what torch launches only the embedding is in the lists.
"""

import json
import sys
from typing import Any
from unittest.mock import patch

from tests.doubles.compile_only import (  # first: it says that kernels are to be compiled
    BATCHES,
    MAX_MODEL_LEN,
    MAX_NUM_TOKENS,
    absent_gpu,
    small_step,
)

# isort: split
import torch
from quire_worker.step_shape import StepShape
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction


class _NotedEmbedding(TorchDispatchMode):
    def __init__(self, launched: list[str]) -> None:
        super().__init__()
        self._launched = launched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does the operation, and notes it if it is the embedding, which for few tokens is an indexing."""
        if func in (torch.ops.aten.embedding.default, torch.ops.aten.index.Tensor):
            self._launched.append("embedding")
        return func(*args, **(kwargs or {}))


def launch_order(capability: int, shape: StepShape) -> list[str]:
    """The launches of a step's forward pass."""
    launched: list[str] = []
    step = small_step(torch.bfloat16)
    step.batch.load_padding(shape)

    def note(kernel: Any, *_arguments: Any, **_options: Any) -> None:
        launched.append(kernel.fn.__name__)

    with absent_gpu(capability), patch.object(JITFunction, "run", note), _NotedEmbedding(launched):
        step.forward(shape)
    return launched


if __name__ == "__main__":
    shapes = {f"decode {size}": StepShape(size, size, True, MAX_MODEL_LEN) for size in BATCHES}
    shapes["mixed"] = StepShape(MAX_NUM_TOKENS, 32, False, MAX_MODEL_LEN)
    orders = {name: launch_order(int(sys.argv[1]), shape) for name, shape in shapes.items()}
    sys.stdout.write(json.dumps(orders) + "\n")
