"""`quire env`: shows what was found on this machine and what a worker would use. Worth pasting into a report of a fault."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil

from quire.config import WorkerConfig
from quire.config.flag import CommandParser, add_flags
from quire.config.not_built import add_refused_flags, refuse
from quire.launcher.option import service_arguments

_PACKAGES = ("grpcio", "protobuf", "pyzmq", "tokenizers", "uvloop", "fastapi", "uvicorn", "transformers")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
)
_DRIVER = Path("/proc/driver/nvidia/version")
_WORKER_TIMEOUT_S = 120.0


def run(argv: Sequence[str]) -> int:
    """Looks and prints."""
    options = _parser().parse_args(argv)
    refuse(options)
    config = WorkerConfig(**{name: value for name, value in vars(options).items() if name != "json"})
    document = look(config)
    print(json.dumps(document, indent=2) if options.json else "\n".join(_lines(document)))
    return 0


def look(config: WorkerConfig) -> dict[str, Any]:
    """Everything, by section. Loads no torch here: a process of its own does, where the worker is installed."""
    worker = _worker(config)
    found = worker.get("found", {})
    return {
        "found": {
            "quire": _version("quire"),
            "python": f"{platform.python_version()} ({sys.executable})",
            "os": f"{_os_name()}, Linux {platform.release()}, {platform.machine()}",
            "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} usable of {os.cpu_count()} threads",
            "memory": _gib(psutil.virtual_memory().total),
            "gpu": [_gpu_line(gpu) for gpu in found.get("gpus", [])] or "none that torch can use",
            "nvidia driver": _driver() or "none",
            "torch": found.get("torch") or "not installed",
            "triton": found.get("triton") or "not installed",
            "cuda": found.get("cuda") or "not in this build of torch",
            "cpu kernels": found.get("cpu_capability") or "unknown",
            **{package: _version(package) for package in _PACKAGES},
            **{name: os.environ[name] for name in _VARIABLES if name in os.environ},
        },
        "would be used": worker.get("used") or worker.get("refused") or worker["missing"],
    }


def _worker(config: WorkerConfig) -> dict[str, Any]:
    missing = [name for name in ("torch", "quire_worker") if find_spec(name) is None]
    if missing:
        return {"missing": f"no worker can run here: {' and '.join(missing)} not installed"}
    flags = service_arguments(config, WorkerConfig)
    command = [sys.executable, "-m", "quire_worker.environment", *flags]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=_WORKER_TIMEOUT_S, check=True
        )
        return json.loads(answer.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        return {"missing": f"the worker's look at the machine failed: {error.stderr.strip()[-500:]}"}
    except subprocess.TimeoutExpired:
        return {"missing": f"the worker's look at the machine took longer than {_WORKER_TIMEOUT_S:.0f} s"}


def _lines(document: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for title, section in document.items():
        lines.append(f"{title}:")
        if isinstance(section, str):
            lines.append(f"  {section}")
            continue
        width = max(map(len, section))
        for name, value in section.items():
            for number, each in enumerate(value if isinstance(value, list) else [value]):
                lines.append(f"  {(name if number == 0 else '').ljust(width)}  {each or 'not installed'}")
    return lines


def _gpu_line(gpu: dict[str, Any]) -> str:
    size = _gib(gpu["memory_bytes"])
    return (
        f"{gpu['name']}, {size}, compute capability {gpu['compute_capability']}, {gpu['multiprocessors']} SMs"
    )


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """As the kernel's module says it, which needs no program and no GPU library."""
    return _DRIVER.read_text().splitlines()[0] if _DRIVER.is_file() else None


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def _cpu_model() -> str:
    names = {
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    }
    return ", ".join(sorted(names)) or platform.machine()


def _parser() -> CommandParser:
    parser = CommandParser(prog="quire env", description=__doc__)
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    add_flags(parser, WorkerConfig)
    add_refused_flags(parser)
    return parser
