"""Lets other processes compile kernels for a GPU that is not there: prints, as JSON, what this one still had to compile.

python -m tests.doubles.compile_elsewhere 90
"""

import json
import sys
from contextlib import closing
from typing import Any

from tests.doubles.rehearse_only import absent_gpu, rehearsed_kernels  # first: kernels are to be compiled

# isort: split
from quire_kernels.compilation import NotedKernel, compiled_beside
from quire_worker.compiler_pool import CompilerPool
from triton import knobs

_QUICK = (
    "_grant_blocks_kernel",
    "_advance_slots_kernel",
    "_copy_blocks_spans_kernel",
    "_linear_tiles_hopper_kernel",
)


def main(capability: int) -> None:
    """Compiles the quick ones, in a pool that lives and in one whose processes are gone, over one cache."""
    with absent_gpu(capability):
        kernels = [kernel for kernel in rehearsed_kernels() if kernel.name in _QUICK]
        num_before = sum(kernel.load() for kernel in kernels)
        half = len(kernels) // 2
        document = {
            "loaded before": num_before,
            "wanted": len(kernels),
            "here": _compiled_here(kernels[:half], CompilerPool(2)),
            "here, alone": _compiled_here(kernels[half:], _ended(CompilerPool(2))),
            "loaded after": sum(kernel.load() for kernel in kernels),
            "half": half,
        }
    sys.stdout.write(json.dumps(document) + "\n")


def _compiled_here(kernels: list[NotedKernel], compilers: CompilerPool) -> int:
    compiled: list[str] = []

    def note(*, src: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            compiled.append(src.name)

    knobs.compilation.listener = note
    with closing(compilers), compiled_beside(kernels, 2, lambda: None, compilers):
        pass
    knobs.compilation.listener = None
    return len(compiled)


def _ended(compilers: CompilerPool) -> CompilerPool:
    compilers._process.kill()  # pyright: ignore[reportPrivateUsage]
    return compilers


if __name__ == "__main__":
    main(int(sys.argv[1]))
