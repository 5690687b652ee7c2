"""What a worker finds on this machine and would use, as one line of JSON: `python -m quire_worker.environment [flags]`.

Flags are those of the worker. Loads torch and reads a model's config, and no weights.
"""

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from quire_kernels.dispatch import attention_implementation

from quire.config import WorkerConfig
from quire.config.flag import parse
from quire.errors import ConfigError
from quire.model_files import model_directory, read_json
from quire_worker.loading import device_of, dtype_of
from quire_worker.model.config import parse_model_config


def found() -> dict[str, Any]:
    """Versions and GPUs."""
    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        "gpus": [_gpu(number) for number in range(torch.cuda.device_count())] if cuda else [],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def used(config: WorkerConfig) -> dict[str, Any]:
    """What a worker with these settings would run on. Raises `ConfigError` where it would not start."""
    device = device_of(config)
    directory = model_directory(config.model, config.revision, config.download_dir, ("*.json",))
    model = parse_model_config(read_json(directory / "config.json"))
    dtype = str(dtype_of(config, model, device)).removeprefix("torch.")
    is_cuda = device.type == "cuda"
    return {
        "model": config.model,
        "device": str(device),
        "dtype": dtype,
        "kv_cache_dtype": dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype,
        "attention": attention_implementation(device),
        "steps": "CUDA graphs" if is_cuda and not config.enforce_eager else "launched one by one",
        "threads": config.num_threads or torch.get_num_threads(),
    }


def main() -> None:
    """Prints both."""
    document: dict[str, Any] = {"found": found()}
    try:
        document["used"] = used(parse(WorkerConfig, sys.argv[1:], "python -m quire_worker.environment"))
    except ConfigError as error:
        document["refused"] = error.message
    sys.stdout.write(json.dumps(document) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpu(number: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(number)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }


if __name__ == "__main__":
    main()
