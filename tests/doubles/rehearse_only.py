"""Rehearses the steps of a worker for a GPU that is not there, then takes others: prints, as JSON, what they still lacked.

python -m tests.doubles.rehearse_only 90
"""

import json
import random
import sys

from tests.doubles.compile_only import (  # first: it says that kernels are to be compiled
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    absent_gpu,
    small_cache,
    small_rotary,
    small_step,
)

# isort: split
import torch
from quire_kernels.compilation import NotedKernel, compiled_beside, noted_launches
from quire_worker.assembly import largest_shape
from quire_worker.device_step import DeviceStep
from quire_worker.rehearsal import changes_of, noted_kernels, unfilled_step
from quire_worker.step_shape import ShapeTable

from quire.config import WorkerConfig

_GRAPH_TOKEN_LIMIT = 250
_MAX_NUM_TOKENS = 1024
"""So many that sizes of every kind lie between, and that the last layer of the largest attends for the wanted tokens alone."""

_NUM_STEPS = 60
_QUICK = {"_grant_blocks_kernel", "_advance_slots_kernel"}
_CONFIG = WorkerConfig(
    model="none",
    max_num_seqs=MAX_NUM_SEQS,
    max_num_batched_tokens=_MAX_NUM_TOKENS,
    max_model_len=MAX_MODEL_LEN,
)
_SHAPES = ShapeTable(MAX_NUM_SEQS, _MAX_NUM_TOKENS, MAX_MODEL_LEN, _GRAPH_TOKEN_LIMIT)
_LARGEST = largest_shape(_CONFIG, MAX_MODEL_LEN)


def rehearsed_kernels() -> list[NotedKernel]:
    """What a worker notes as it starts; to be called with a GPU that is not there."""
    return noted_kernels(_unfilled(), _SHAPES, _LARGEST)


def main(capability: int) -> None:
    """Prints the names of what was rehearsed, missed, and noted again after being compiled."""
    with absent_gpu(capability):
        unfilled = _unfilled()
        rehearsed = noted_kernels(unfilled, _SHAPES, _LARGEST)
        with noted_launches() as needed:
            _take_steps(small_step(torch.bfloat16, _MAX_NUM_TOKENS), random.Random(0))
            _take_padded_steps(unfilled)
        quick = [kernel for kernel in rehearsed if kernel.name in _QUICK]
        with compiled_beside(quick, 2, lambda: None):
            pass
        again = noted_kernels(unfilled, _SHAPES, _LARGEST)
    document = {
        "rehearsed": _names(rehearsed),
        "missed": _names([kernel for kernel in needed if kernel not in rehearsed]),
        "compiled": _names(quick),
        "again": _names(again),
    }
    sys.stdout.write(json.dumps(document) + "\n")


def _unfilled() -> DeviceStep:
    return unfilled_step(small_cache(torch.bfloat16), _CONFIG, MAX_MODEL_LEN, torch.bfloat16, small_rotary())


def _take_steps(step: DeviceStep, chance: random.Random) -> None:
    """Steps of any size, as plans would have them; every sixth of few rows."""
    for number in range(_NUM_STEPS):
        num_rows = chance.randint(1, MAX_NUM_SEQS if number % 6 else 48)
        num_tokens = chance.randint(num_rows, _MAX_NUM_TOKENS)
        is_decode = chance.random() < 0.5
        shape = _SHAPES.shape_of(
            num_rows if is_decode else num_tokens,
            num_rows,
            is_decode=is_decode,
            max_seq_len=chance.randint(1, MAX_MODEL_LEN),
        )
        step.batch.enter(changes_of(chance.randint(1, 40)), step.kv_cache)
        step.batch.load_padding(shape)
        step.run(shape)


def _take_padded_steps(step: DeviceStep) -> None:
    """A mixed step of every size that has no graph."""
    for num_tokens in range(_GRAPH_TOKEN_LIMIT + 1, _MAX_NUM_TOKENS + 1, 64):
        shape = _SHAPES.shape_of(num_tokens, 1, is_decode=False, max_seq_len=MAX_MODEL_LEN)
        step.batch.load_padding(shape)
        step.forward(shape)


def _names(kernels: list[NotedKernel]) -> list[str]:
    return sorted(kernel.name for kernel in kernels)


if __name__ == "__main__":
    main(int(sys.argv[1]))
