"""The paged KV cache: how many blocks fit, and the one allocation that holds them.

Layout `[num_layers, 2, num_blocks + 1, block_size, num_kv_heads, head_dim]`; block 0 is scratch, where writes of
ended rows land. Knows memory and shapes, no sequence.
"""

import math
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from quire.config import WorkerConfig
from quire.errors import ConfigError
from quire_worker.model.config import ModelConfig

_CPU_CACHE_LIMIT_BYTES = 2**30
_CPU_SHARE_OF_AVAILABLE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheShape:
    """Facts that fix the size of a block."""

    model: ModelConfig
    dtype: torch.dtype
    block_size: int

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers, keys and values."""
        model = self.model
        return 2 * model.num_hidden_layers * self.block_size * model.kv_size * self.dtype.itemsize


def num_cache_blocks(
    shape: CacheShape,
    config: WorkerConfig,
    max_model_len: int,
    device: torch.device,
    *,
    step_bytes: int = 0,
) -> int:
    """Blocks that can be granted, beside the `step_bytes` that a step was measured to need.

    Raises `ConfigError`, with the figure that would fit, when they cannot do.
    """
    available = max(0, _available_bytes(config, device) - step_bytes)
    fitting = max(0, available // shape.block_bytes - 1)
    if config.num_gpu_blocks_override is not None:
        if config.num_gpu_blocks_override > fitting:
            raise ConfigError(
                f"--num-gpu-blocks-override={config.num_gpu_blocks_override}: {shape.block_bytes:,} bytes a block do "
                f"not fit in {available:,} bytes of memory; at most {fitting} blocks do",
                field="num_gpu_blocks_override",
            )
        num_blocks = config.num_gpu_blocks_override
    elif config.kv_cache_memory_bytes is not None and config.kv_cache_memory_bytes > available:
        raise ConfigError(
            f"--kv-cache-memory-bytes={config.kv_cache_memory_bytes}: only {available:,} bytes of memory are "
            f"available; at most {available} fit",
            field="kv_cache_memory_bytes",
        )
    else:
        num_blocks = min(fitting, _wanted_blocks(shape, config, max_model_len, available, device))
    num_needed = -(-max_model_len // shape.block_size)
    if num_blocks < num_needed:
        longest = num_blocks * shape.block_size
        raise ConfigError(
            f"--max-model-len={max_model_len} needs {num_needed} KV blocks of {shape.block_size} tokens, {num_blocks} fit; "
            f"the longest context that fits is {longest}{_what_else_would_do(shape, config, num_needed, device, step_bytes)}",
            field="max_model_len",
        )
    return num_blocks


def allocate_cache(shape: CacheShape, num_blocks: int, device: torch.device) -> Tensor:
    """The cache, with the scratch block in front."""
    model = shape.model
    return torch.zeros(
        (
            model.num_hidden_layers,
            2,
            num_blocks + 1,
            shape.block_size,
            model.num_key_value_heads,
            model.head_dim,
        ),
        dtype=shape.dtype,
        device=device,
    )


def _what_else_would_do(
    shape: CacheShape, config: WorkerConfig, num_needed: int, device: torch.device, step_bytes: int
) -> str:
    """The setting of memory that keeps so many blocks from fitting, and the figure with which they would."""
    if config.num_gpu_blocks_override is not None:
        return f"; --num-gpu-blocks-override={config.num_gpu_blocks_override} would have to be at least {num_needed}"
    cache_bytes = num_needed * shape.block_bytes
    if config.kv_cache_memory_bytes is not None and config.kv_cache_memory_bytes < cache_bytes:
        return f"; --kv-cache-memory-bytes={config.kv_cache_memory_bytes} would have to be at least {cache_bytes}"
    if device.type != "cuda":
        return ""
    cache_bytes += shape.block_bytes  # the scratch block
    free, total = torch.cuda.mem_get_info(device)
    share = math.ceil(1000 * (1 - (free - cache_bytes - step_bytes) / total)) / 1000
    if share <= 1:
        return f"; --gpu-memory-utilization={config.gpu_memory_utilization} would have to be at least {share}"
    limits = f"--max-num-batched-tokens={config.step_token_limit} and --max-num-seqs={config.max_num_seqs}"
    if free > cache_bytes:
        part = int(100 * (free - cache_bytes) / step_bytes)
        return f"; steps take {step_bytes:,} bytes: about {part} % of {limits} would leave room at --gpu-memory-utilization=1"
    return f"; {free:,} bytes are free on the device, and {cache_bytes:,} are needed even without what {limits} take"


def _available_bytes(config: WorkerConfig, device: torch.device) -> int:
    """Memory that the cache may take; the weights are loaded already and no longer part of it."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return max(0, int(free - (1 - config.gpu_memory_utilization) * total))
    return psutil.virtual_memory().available


def _wanted_blocks(
    shape: CacheShape, config: WorkerConfig, max_model_len: int, available: int, device: torch.device
) -> int:
    """By memory, but never more than every slot at its longest could use; on a CPU room for one longest at least."""
    longest_blocks = -(-max_model_len // shape.block_size)
    if config.kv_cache_memory_bytes is not None:
        wanted_bytes = config.kv_cache_memory_bytes
    elif device.type == "cuda":
        wanted_bytes = available
    else:
        usual = min(_CPU_CACHE_LIMIT_BYTES, int(available * _CPU_SHARE_OF_AVAILABLE))
        wanted_bytes = max(usual, longest_blocks * shape.block_bytes)
    most_usable = config.max_num_seqs * longest_blocks
    return min(wanted_bytes // shape.block_bytes, most_usable)
