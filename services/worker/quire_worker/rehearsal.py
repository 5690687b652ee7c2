"""The kernels of the steps to come, compiled while the weights are loaded.

A rehearsal takes every step of a start, and some more, over weights that nobody has filled, with launches noted instead
of made: kernels meet the sizes, strides and alignments of the real steps, which their binaries depend on. What it
misses is compiled by its first launch. Knows shapes and the step, and by whom kernels are compiled; nothing of how.
"""

import os
from array import array
from collections.abc import Generator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from itertools import count, takewhile

import numpy as np
import torch
from quire_kernels.compilation import NotedKernel, compiled_beside, noted_launches
from quire_kernels.linear.tiling import MANY_ROWS
from torch import Tensor

from quire.config import WorkerConfig
from quire.wire.plan import NO_LOGPROBS, SlotAdmission
from quire_worker.assembly import largest_shape, shape_table
from quire_worker.compiler_pool import CompilerPool
from quire_worker.device_batch import DeviceBatch
from quire_worker.device_step import DeviceStep
from quire_worker.kv_cache import CacheShape, allocate_cache
from quire_worker.model.decoder import Decoder
from quire_worker.model.weights import empty_weights
from quire_worker.progress import Progress
from quire_worker.slot_table import Grants, SlotChanges
from quire_worker.step_shape import ShapeTable, StepShape

_MAX_THREADS = 8
"""More of them wait for the interpreter, in which a kernel spends about a third of its compilation."""

_NUM_CHANGES = (1, 2, 16)
"""Binaries differ by whether a number is 1, a multiple of 16, or neither."""


@contextmanager
def kernels_compiled(
    cache: CacheShape,
    config: WorkerConfig,
    max_model_len: int,
    dtype: torch.dtype,
    rotary: Tensor,
    compilers: CompilerPool | None = None,
) -> Generator[None]:
    """Within, the kernels of a worker's steps are being compiled, by these processes if there are any; on leaving, they are,
    and the processes are told to end. Without a GPU and Triton there is nothing to do.
    """
    with closing(compilers) if compilers is not None else nullcontext():
        with _compiled(cache, config, max_model_len, dtype, rotary, compilers):
            yield


@contextmanager
def _compiled(
    cache: CacheShape,
    config: WorkerConfig,
    max_model_len: int,
    dtype: torch.dtype,
    rotary: Tensor,
    compilers: CompilerPool | None,
) -> Generator[None]:
    if not rotary.is_cuda or find_spec("triton") is None:
        yield
        return
    step = unfilled_step(cache, config, max_model_len, dtype, rotary)
    kernels = noted_kernels(
        step, shape_table(cache.model, config, max_model_len), largest_shape(config, max_model_len)
    )
    del step
    torch.cuda.empty_cache()
    progress = Progress("compiling kernels", len(kernels))
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    if compilers is not None:
        num_threads = compilers.num_processes  # so many wait for one each
    with compiled_beside(kernels, num_threads, progress.note_done, compilers):
        yield


def unfilled_step(
    cache: CacheShape, config: WorkerConfig, max_model_len: int, dtype: torch.dtype, rotary: Tensor
) -> DeviceStep:
    """A shallow step over buffers as large as the worker's, and over a cache and weights that hold nothing."""
    model, device = cache.model.shallow(), rotary.device
    batch = DeviceBatch(
        max_num_seqs=config.max_num_seqs,
        max_num_tokens=config.step_token_limit,
        max_blocks=-(-max_model_len // cache.block_size),
        vocab_size=model.vocab_size,
        device=device,
    )
    decoder = Decoder(model, empty_weights(model, dtype, device), rotary)
    return DeviceStep(decoder, allocate_cache(cache, 1, device), batch, max_num_seqs=config.max_num_seqs)


def noted_kernels(step: DeviceStep, shapes: ShapeTable, largest: StepShape) -> list[NotedKernel]:
    """The kernels of steps of these shapes, and of what happens between steps, that are not compiled yet."""
    with noted_launches() as kernels:
        # Draws first: their search takes longest to compile, and must not be the last to begin.
        for num_rows in (largest.num_rows, *shapes.captured_rows()):
            step.batch.load_padding(StepShape(num_rows, num_rows, True, 1))
            step.draw(num_rows)
        for shape in (*_halvings(largest), *_with_fewer_rows(largest, shapes), *shapes.captured()):
            step.batch.load_padding(shape)
            step.forward(shape)
        words = -(-step.logits(1).shape[1] // 32)
        step.mask([0], np.zeros((1, words), dtype=np.int32))
        for number in _NUM_CHANGES:
            step.batch.enter(changes_of(number), step.kv_cache)
    return kernels


def _halvings(largest: StepShape) -> list[StepShape]:
    """The largest step, then each with half the tokens of the one before: products of many rows change kernels on the way."""
    # Smaller steps differ in graphs, which are rehearsed one by one.
    sizes = takewhile(lambda size: size >= MANY_ROWS, (largest.num_tokens >> turn for turn in count(1)))
    smaller = [replace(largest, num_tokens=size, num_rows=min(largest.num_rows, size)) for size in sizes]
    return [largest, *smaller]


def _with_fewer_rows(largest: StepShape, shapes: ShapeTable) -> list[StepShape]:
    """The largest step in as few rows as steps with prompts have: their last layer attends by kernels for so many sequences."""
    mixed_rows = sorted({shape.num_rows for shape in shapes.captured() if not shape.is_decode})
    return [replace(largest, num_rows=rows) for rows in mixed_rows if rows < largest.num_rows]


def changes_of(number: int) -> SlotChanges:
    """So many of each change that the device knows, and a fork of what was admitted, penalties included."""
    return SlotChanges(
        releases=[],
        admissions=[_ADMISSION],
        choices=[],
        grants=Grants(array("i", [each for index in range(number) for each in (0, index, 0)])),
        copies=[(0, 0)] * number,
        forks=[(0, 1, 0)],
    )


_ADMISSION = SlotAdmission(
    slot=0,
    token_ids=[0],
    num_computed_tokens=0,
    prompt_len=1,
    sequence_index=0,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    seed=0,
    repetition_penalty=1.1,
    num_logprobs=NO_LOGPROBS,
    min_len=0,
    max_len=2,
    stop_token_ids=(0,),
)
