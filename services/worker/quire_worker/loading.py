"""From a configuration to a runner: finds the model and loads it; `assembly` puts the runner together."""

from dataclasses import dataclass

import torch

from quire.assets import default_served_model_names
from quire.config import WorkerConfig
from quire.errors import ConfigError
from quire.model_files import model_directory, read_json
from quire.v1 import worker_pb2
from quire_worker.assembly import build_runner
from quire_worker.compiler_pool import CompilerPool
from quire_worker.grammar_compiler import GrammarCompiler
from quire_worker.kv_cache import CacheShape
from quire_worker.model.config import ModelConfig, eos_token_ids, parse_model_config
from quire_worker.model.decoder import Decoder
from quire_worker.model.rope import rotary_table
from quire_worker.model.weights import dummy_weights, load_weights
from quire_worker.rehearsal import kernels_compiled
from quire_worker.runner import Runner

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CONFIG_FILES = ("*.json",)
_WEIGHT_FILES = ("*.safetensors",)
_CACHE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
}
_FIRST_CAPABILITY_WITH_FP8 = (8, 9)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A runner and what its scheduler must know of it."""

    runner: Runner
    spec: worker_pb2.ModelSpec
    capacity: worker_pb2.WorkerCapacity


def load_model(config: WorkerConfig, compilers: CompilerPool | None = None) -> LoadedModel:
    """Loads the configured model and allocates its cache; ends `compilers` when it has no more use for them. Raises
    `ConfigError`.
    """
    device = device_of(config)
    files = _CONFIG_FILES if config.load_format == "dummy" else (*_CONFIG_FILES, *_WEIGHT_FILES)
    directory = model_directory(config.model, config.revision, config.download_dir, files)
    raw = read_json(directory / "config.json")
    if not raw:
        raise ConfigError(f"--model={config.model}: the directory has no config.json", field="model")
    model = parse_model_config(raw)
    max_model_len = _max_model_len(config, model)
    eos = eos_token_ids(read_json(directory / "generation_config.json")) or model.eos_token_ids
    compiler = GrammarCompiler(directory / "tokenizer.json", model.vocab_size, eos)
    dtype = dtype_of(config, model, device)
    rotary = rotary_table(
        model.rope,
        head_dim=model.head_dim,
        max_position_embeddings=model.max_position_embeddings,
        max_model_len=max_model_len,
    ).to(device)
    shape = CacheShape(model=model, dtype=_cache_dtype(config, dtype, device), block_size=config.block_size)
    with kernels_compiled(shape, config, max_model_len, dtype, rotary, compilers):
        try:
            if config.load_format == "dummy":
                weights = dummy_weights(model, config.seed, dtype, device)
            else:
                weights = load_weights(model, directory, dtype, device)
        except torch.OutOfMemoryError as error:
            raise ConfigError(
                f"--model={config.model}: the device has no room for its weights as {dtype}: {error}",
                field="model",
            ) from error
    decoder = Decoder(model, weights, rotary)
    runner, num_blocks = build_runner(decoder, shape, config, max_model_len, device, compiler)
    return LoadedModel(
        runner=runner,
        spec=worker_pb2.ModelSpec(
            model=config.model,
            revision=config.revision or "",
            served_model_names=default_served_model_names(config.model, config.served_model_name),
            max_model_len=max_model_len,
            vocab_size=model.vocab_size,
            eos_token_ids=eos,
        ),
        capacity=worker_pb2.WorkerCapacity(
            num_blocks=num_blocks,
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.step_token_limit,
        ),
    )


def device_of(config: WorkerConfig) -> torch.device:
    """As asked; `auto` takes a GPU where there is one. Raises `ConfigError`."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device=cuda: no CUDA device is available", field="device")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def dtype_of(config: WorkerConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """As asked; `auto` takes the model's own type on a GPU and float32 on a CPU, where it is exact and not slower."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    if device.type == "cpu":
        return torch.float32
    return _DTYPES.get(model.dtype or "bfloat16", torch.bfloat16)


def _cache_dtype(config: WorkerConfig, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    cache_dtype = _CACHE_DTYPES.get(config.kv_cache_dtype, dtype)
    if cache_dtype.itemsize == 1 and device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < _FIRST_CAPABILITY_WITH_FP8:
            raise ConfigError(
                f"--kv-cache-dtype={config.kv_cache_dtype}: this GPU has compute capability {capability[0]}."
                f"{capability[1]}; 8-bit floats need 8.9",
                field="kv_cache_dtype",
            )
    return cache_dtype


def _max_model_len(config: WorkerConfig, model: ModelConfig) -> int:
    longest = _longest_context(model)
    if config.max_model_len is None:
        return longest
    if config.max_model_len > longest:
        raise ConfigError(
            f"--max-model-len={config.max_model_len}: the model was made for at most {longest} tokens",
            field="max_model_len",
        )
    return config.max_model_len


def _longest_context(model: ModelConfig) -> int:
    rope = model.rope
    factor = float(rope.get("factor") or 1.0)
    match rope["rope_type"]:
        case "linear" | "dynamic":
            return int(model.max_position_embeddings * factor)
        case "yarn":
            original = rope.get("original_max_position_embeddings") or model.max_position_embeddings
            return max(model.max_position_embeddings, int(original * factor))
        case _:
            return model.max_position_embeddings
