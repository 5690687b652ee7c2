"""Hashes kernels in a random order, then rehearses steps for a GPU that is not there: prints the kernels' keys as JSON.

python -m tests.doubles.hash_only 90 SEED
"""

import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.doubles.rehearse_only import absent_gpu, rehearsed_kernels  # first: kernels are to be compiled

# isort: split
from triton.runtime.jit import JITFunction

_NUM_THREADS = 4


def main(capability: int, seed: int) -> None:
    """Threads hash beside each other, as they do when they compile."""
    with absent_gpu(capability):
        kernels = rehearsed_kernels()
        functions = _functions()
        random.Random(seed).shuffle(functions)
        with ThreadPoolExecutor(_NUM_THREADS) as threads:
            keys = dict(zip(map(_name, functions), threads.map(_key, functions), strict=True))
    by_kernel = {
        f"{_name(kernel.function)} {kernel.specialization}": keys[_name(kernel.function)]
        for kernel in kernels
    }
    sys.stdout.write(json.dumps(by_kernel) + "\n")


def _functions() -> list[JITFunction[Any]]:
    """All of them, entries or not, in an order that is the same in every process."""
    rooms = [room for name, room in sorted(sys.modules.items()) if name.startswith("quire_kernels")]
    found = {
        _name(each): each for room in rooms for each in vars(room).values() if isinstance(each, JITFunction)
    }
    return [found[name] for name in sorted(found)]


def _name(function: JITFunction[Any]) -> str:
    return f"{function.module}.{function.__qualname__}"


def _key(function: JITFunction[Any]) -> str:
    return function.cache_key


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
