"""Processes that compile kernels into Triton's cache on disk for another one: `python -m quire_kernels.compiler_process FD...`

Each number is an open socket, to which a process answers lines of JSON with lines of JSON, until who asks closes it or is no
more. torch and Triton are imported once, before the first of them is forked: that takes seconds, and memory. None has a GPU,
and none needs one: the cache's key and the binary depend on the capability alone, which every request names.
"""

import gc
import importlib
import json
import os
import signal
import socket
import sys
from functools import cache
from typing import Any, Never

_LONGEST_S = 60
"""A kernel that takes longer ends the process that compiles it."""


def serve(descriptors: list[int]) -> Never:
    """One process for each socket; ends when all of them have ended."""
    _import_all()
    for own in descriptors:
        if os.fork() == 0:
            _answer(own, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)  # so that the other end notices when the process that has it now is gone
    for _ in descriptors:
        os.wait()
    os._exit(0)  # what was imported takes half a second to take down


def _import_all() -> None:
    """What compiling a kernel will ask for; kernels themselves take little."""
    gc.disable()  # all of it stays
    for name in ("torch", "quire_kernels", "triton.compiler", "triton.experimental.gluon"):
        importlib.import_module(name)
    from quire_kernels.source_hash import hash_callees_first, hash_compiler

    hash_callees_first()
    hash_compiler()
    gc.freeze()  # nor is it written to by a collection of a process that shares it
    gc.enable()


def _answer(own: int, descriptors: list[int]) -> Never:
    os.set_inheritable(own, False)  # an assembler that outlives this process must not keep who asked waiting
    for descriptor in descriptors:
        if descriptor != own:
            os.close(descriptor)
    status = 1
    try:
        with socket.socket(fileno=own) as connection, connection.makefile("rw") as lines:
            for line in lines:
                signal.alarm(_LONGEST_S)
                json.dump({"error": _error_of(json.loads(line))}, lines)
                lines.write("\n")
                lines.flush()
                signal.alarm(0)
        status = 0
    except OSError:  # who asked is gone
        pass
    finally:
        os._exit(status)  # nothing of the process that was forked is to be ended here


def _error_of(request: dict[str, Any]) -> str | None:
    try:
        _take_target(**request["target"])
        function = getattr(importlib.import_module(request["module"]), request["function"])
        function.preload(request["specialization"])
    except Exception as error:  # noqa: BLE001 - whatever the compiler raises is for who asked
        return f"{type(error).__name__}: {error}"
    return None


@cache
def _take_target(*, backend: str, arch: int | str, warp_size: int) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    driver.set_active(_NamedDevice(GPUTarget(backend, arch, warp_size)))  # pyright: ignore[reportArgumentType]


class _NamedDevice:
    """What the compiler asks a driver for: what to compile for."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0


if __name__ == "__main__":
    serve([int(number) for number in sys.argv[1:]])
