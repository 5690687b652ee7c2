"""The worker process: `python -m quire_worker`."""

import asyncio
import os
import sys

# Idle OpenMP threads must sleep: spinning ones starve the other processes of the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from quire import garbage
from quire.config import WorkerConfig
from quire.config.flag import parse
from quire.errors import ConfigError
from quire.telemetry.logs import configure_logging
from quire_worker.compiler_pool import CompilerPool, compiler_pool
from quire_worker.cuda_context import begin_context


def main() -> None:
    """Parses flags, loads the model and serves."""
    configure_logging("worker")
    try:
        config = parse(WorkerConfig, sys.argv[1:], "python -m quire_worker")
        compilers = compiler_pool(config.device)
        if config.device != "cpu":
            begin_context()
        _run(config, compilers)
    except ConfigError as error:
        sys.exit(f"quire_worker: {error.message}")


def _run(config: WorkerConfig, compilers: CompilerPool | None) -> None:
    # Imported here because torch takes seconds, in which the device is got ready and the compilers import it too; flags are
    # refused before.
    with garbage.paused():
        import torch

        from quire_worker.loading import load_model
        from quire_worker.serving import serve

    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    asyncio.run(serve(config, load_model(config, compilers)))


if __name__ == "__main__":
    main()
