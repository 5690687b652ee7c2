"""Compiles every kernel of a served step for a GPU that is not there: prints their names, or ends with the compiler's error.

    python -m tests.doubles.compile_only 90 bfloat16

A small decoder takes steps of several shapes over tensors of the CPU. Where a kernel would be launched it is only compiled, to
machine code of the capability that is asked for; so the results are rubbish, and nobody looks at them.
"""

import os
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is defined

import numpy as np
import torch
from quire_kernels import HeadPlaces, dispatch, overlap
from quire_kernels.activation import silu_and_mul
from quire_kernels.attention import decode, paged, prefill, prefill_hopper
from quire_kernels.dispatch import device
from quire_kernels.linear import gemv, held_rows, many_rows, rows, tiles_hopper
from quire_kernels.norm import rows as norm_rows
from quire_kernels.rotary import heads
from quire_kernels.sampling import gumbel
from quire_kernels.slots import step as slot_step
from quire_worker.device_batch import DeviceBatch
from quire_worker.device_step import DeviceStep
from quire_worker.kv_cache import CacheShape, allocate_cache
from quire_worker.model.config import parse_model_config
from quire_worker.model.decoder import Decoder
from quire_worker.model.rope import rotary_table
from quire_worker.model.weights import dummy_weights
from quire_worker.step_shape import StepShape
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CPU = torch.device("cpu")
NUM_MULTIPROCESSORS, SHARED_BYTES = 132, 227 << 10
MAX_NUM_SEQS, MAX_NUM_TOKENS, MAX_MODEL_LEN = 512, 512, 4096
MANY_ROWS = (2048, 4096)
BATCHES = (1, 8, 64, 128, 192, 512)
"""Of one row, of few, of many: each has kernels or settings of its own. Tiles of 192 rows are copied in two boxes."""
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": MAX_MODEL_LEN,
    "tie_word_embeddings": True,
}


class AbsentDevice:
    """What the compiler asks a driver for."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def launcher_cls(self, source: Any, metadata: Any) -> None:
        """Nothing can be launched."""

    @property
    def utils(self) -> "AbsentDevice":
        return self

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills and threads of a kernel that nobody will run."""
        return 1, 1, 0, 0, 1024


@contextmanager
def absent_gpu(capability: int) -> Generator[None]:
    """Within, kernels are chosen and compiled for a GPU of this capability (ten times major, plus minor)."""
    driver.set_active(AbsentDevice(capability))
    major = capability // 10
    for told_once in (device.is_hopper, device.holds_deep_pipelines):
        told_once.cache_clear()
    overlaps = [
        patch.object(module, "overlaps_launches", lambda device: major >= 9)
        for module in (
            overlap,
            decode,
            prefill,
            prefill_hopper,
            gemv,
            held_rows,
            many_rows,
            rows,
            tiles_hopper,
            norm_rows,
            silu_and_mul,
            heads,
            gumbel,
            slot_step,
        )
    ]
    with ExitStack() as patches:
        for each in (
            patch.object(device, "runs_triton", lambda tensor: True),
            patch.object(torch.cuda, "get_device_capability", lambda device: divmod(capability, 10)),
            patch.object(many_rows, "num_multiprocessors", lambda device: NUM_MULTIPROCESSORS),
            patch.object(paged, "_device_facts", lambda device: (major, NUM_MULTIPROCESSORS)),
            *overlaps,
        ):
            patches.enter_context(each)
        yield


def compile_step(capability: int, cache_dtype: torch.dtype) -> set[str]:
    """The kernels of a step for a GPU of this capability, all of them compiled."""
    names: set[str] = set()
    launch = JITFunction.run

    def compile_instead(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        names.add(kernel.fn.__name__)
        return launch(kernel, *arguments, grid=grid, warmup=True, **options)

    with absent_gpu(capability), patch.object(JITFunction, "run", compile_instead):
        _take_steps(cache_dtype)
    return names


def small_cache(cache_dtype: torch.dtype) -> CacheShape:
    """The cache of the decoder that takes the steps."""
    return CacheShape(model=parse_model_config(CONFIG), dtype=cache_dtype, block_size=16)


def small_rotary() -> torch.Tensor:
    """Its table of rotations."""
    rope = parse_model_config(CONFIG).rope
    return rotary_table(
        rope, head_dim=128, max_position_embeddings=MAX_MODEL_LEN, max_model_len=MAX_MODEL_LEN
    )


def small_step(cache_dtype: torch.dtype, max_num_tokens: int = MAX_NUM_TOKENS) -> DeviceStep:
    """The step over it."""
    cache = small_cache(cache_dtype)
    batch = DeviceBatch(
        max_num_seqs=MAX_NUM_SEQS,
        max_num_tokens=max_num_tokens,
        max_blocks=MAX_MODEL_LEN // 16,
        vocab_size=cache.model.vocab_size,
        device=CPU,
    )
    decoder = Decoder(cache.model, dummy_weights(cache.model, 0, torch.bfloat16, CPU), small_rotary())
    return DeviceStep(decoder, allocate_cache(cache, 4, CPU), batch, max_num_seqs=MAX_NUM_SEQS)


def _take_steps(cache_dtype: torch.dtype) -> None:
    step = small_step(cache_dtype)
    shapes = [StepShape(size, size, True, MAX_MODEL_LEN) for size in BATCHES]
    for shape in (*shapes, StepShape(MAX_NUM_TOKENS, 32, False, MAX_MODEL_LEN)):
        step.batch.load_padding(shape)
        step.forward(shape)
        step.mask([0], np.zeros((1, -(-CONFIG["vocab_size"] // 32)), dtype=np.int32))
        step.draw(shape.num_rows)
    _change_slots(step.batch, step)
    odd = torch.zeros((16, 96), dtype=torch.bfloat16)
    dispatch.linear_add_(
        torch.zeros((16, 64), dtype=torch.bfloat16), odd, torch.zeros((64, 96), dtype=torch.bfloat16)
    )
    for num_rows in MANY_ROWS:
        x, weight = (torch.zeros((rows, 2048), dtype=torch.bfloat16) for rows in (num_rows, 6144))
        dispatch.gated_linear(x, weight, eps=1e-6)
        if device.is_hopper(x.device):
            many_rows.linear_many_rows(x, weight, gated=True)  # as of rows that are too many for factors
        dispatch.linear(x, weight)
        _project_heads(x, weight, cache_dtype)
    _attend_in_window(cache_dtype)


def _attend_in_window(cache_dtype: torch.dtype) -> None:
    """As layers with a sliding window do, to prompts."""
    q = torch.zeros((64, 16, 128), dtype=torch.bfloat16)
    k_cache, v_cache = torch.zeros((2, 4, 16, 8, 128)).to(cache_dtype)
    ints = torch.zeros((2, 4), dtype=torch.int32)
    paged.paged_attention_mixed(
        q, k_cache, v_cache, ints, torch.zeros(3, dtype=torch.int32), ints[:, 0].contiguous(),
        scale=1.0, sliding_window=64, max_query_len=64, max_seq_len=64,
    )  # fmt: skip


def _project_heads(x: torch.Tensor, weight: torch.Tensor, cache_dtype: torch.dtype) -> None:
    """As a model without norms of heads does."""
    places = torch.zeros(len(x), dtype=torch.int64)
    k_cache, v_cache = torch.zeros((2, 4, 16, 8, 128)).to(cache_dtype)
    dispatch.project_heads(
        x,
        weight,
        None,
        HeadPlaces(
            cos_sin=small_rotary(), positions=places, k_cache=k_cache, v_cache=v_cache, slot_mapping=places
        ),
        eps=1e-6,
    )


def _change_slots(batch: DeviceBatch, step: DeviceStep) -> None:
    ints = torch.zeros((1, 16), dtype=torch.int32)
    batch.enter_loaded()
    dispatch.fork_slots(batch.state, ints[:, :3].contiguous())
    dispatch.copy_blocks(step.kv_cache, torch.zeros((1, 2), dtype=torch.int64))


if __name__ == "__main__":
    print(*sorted(compile_step(int(sys.argv[1]), getattr(torch, sys.argv[2]))))
