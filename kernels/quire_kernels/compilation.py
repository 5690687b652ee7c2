"""Compiles kernels before anything runs them, side by side: one after another a step's take as long as its weights.

What is to be compiled is found by launching: within `noted_launches` a launch leaves a note of the kernel, with the
types and values that its binary depends on, and does nothing. Knows no kernel by name.
"""

import logging
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from threading import Event, Thread
from typing import Any, Protocol

logger = logging.getLogger(__name__)


class _NotKeptError(Exception):
    """The cache on disk lacks a binary."""


@cache
def _sealed(source_class: Any) -> Any:
    """The class of sources that cannot be compiled, only found compiled."""

    def make_ir(*_: Any, **__: Any) -> Any:
        raise _NotKeptError

    return type(source_class.__name__, (source_class,), {"make_ir": make_ir})


@dataclass(frozen=True, kw_only=True)
class NotedKernel:
    """A binary that this process does not hold yet."""

    function: Any
    specialization: str
    """What the binary depends on beside the function, as Triton writes it down."""

    @property
    def name(self) -> str:
        """Of the function."""
        return self.function.fn.__name__

    def compile(self) -> None:
        """Compiles it with its launcher, or reads them from the cache on disk, and loads it: the next launch finds it."""
        compiled = self.function.preload(self.specialization)
        # Triton makes the launcher, for which it may call a C compiler, when somebody first asks how to run the kernel.
        _ = compiled.run

    def load(self) -> bool:
        """Does the same if the cache on disk has the binary; otherwise nothing, and returns False."""
        _ = self.function.cache_key  # once for all of its binaries
        reader = copy(self.function)  # which shares what is loaded, and has a source that is never read
        reader.ASTSource = _sealed(self.function.ASTSource)
        try:
            compiled = reader.preload(self.specialization)
        except _NotKeptError:
            return False
        _ = compiled.run
        return True

    @property
    def request(self) -> dict[str, Any]:
        """What `compiler_process` is asked for it; on a device that the driver knows."""
        from triton.runtime import driver

        target = driver.active.get_current_target()
        return {
            "target": {"backend": target.backend, "arch": target.arch, "warp_size": target.warp_size},
            "module": self.function.module,
            "function": self.function.__qualname__,
            "specialization": self.specialization,
        }


@contextmanager
def noted_launches() -> Generator[list[NotedKernel]]:
    """Within, Triton kernels are not launched: those to be compiled are in the list, each once. Other work is done.

    Holds for the whole process, not for one thread. The list stays empty where Triton is missing.
    """
    noted: dict[str, NotedKernel] = {}
    if find_spec("triton") is None:
        yield []
        return
    from triton import knobs
    from triton.runtime.jit import JITFunction

    from quire_kernels.source_hash import hash_callees_first, hash_compiler

    hash_callees_first()
    Thread(target=hash_compiler, name="hash-compiler").start()  # done when what is noted is looked for
    kernels: list[NotedKernel] = []

    def note(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kernel = NotedKernel(function=fn.jit_function, specialization=compile["specialization_data"])
        name = f"{fn.module}.{fn.name} {kernel.specialization}"
        if noted.setdefault(name, kernel) is kernel:
            kernels.append(kernel)
        return True  # it has been seen to

    run, hook = JITFunction.run, knobs.runtime.jit_cache_hook

    def run_nothing(function: Any, *arguments: Any, **options: Any) -> Any:
        return run(function, *arguments, **{**options, "warmup": True})

    # A launch of a kernel that is compiled already has no hook that could keep it from happening.
    JITFunction.run, knobs.runtime.jit_cache_hook = run_nothing, note
    try:
        yield kernels
    finally:
        JITFunction.run, knobs.runtime.jit_cache_hook = run, hook


class Elsewhere(Protocol):
    """Who compiles instead of this process's threads."""

    def compile(self, kernel: NotedKernel) -> str | None:
        """Brings its binary to the cache on disk, or says why not."""
        ...

    def close(self) -> None:
        """Ends all that is under way; may be called again."""
        ...


@contextmanager
def compiled_beside(
    kernels: Iterable[NotedKernel],
    num_threads: int,
    on_progress: Callable[[], None],
    elsewhere: Elsewhere | None = None,
) -> Generator[None]:
    """Compiles while the caller does something else; on leaving, all are compiled.

    Threads do, because most of the work is done outside the interpreter; they are better off with `elsewhere`, which they ask for
    what the cache on disk lacks. `on_progress` is called by them. A kernel that fails is left to its first launch, which will
    fail in its place. When the caller fails no other is begun, and `elsewhere` is closed.
    """
    reasons: set[str] = set()
    given_up = Event()

    def is_at_hand(kernel: NotedKernel) -> bool:
        if elsewhere is None:
            return False
        if kernel.load():
            return True
        reason = elsewhere.compile(kernel)
        if given_up.is_set():
            return True  # nobody will launch it
        if reason is not None and reason not in reasons:
            reasons.add(reason)
            logger.warning(
                "a kernel is compiled in this process", extra={"kernel": kernel.name, "why": reason}
            )
        return False

    def compile_one(kernel: NotedKernel) -> None:
        try:
            if not is_at_hand(kernel):
                kernel.compile()
        except Exception:
            logger.warning("a kernel was not compiled ahead", extra={"kernel": kernel.name}, exc_info=True)
        on_progress()

    with ThreadPoolExecutor(num_threads, thread_name_prefix="compile-kernel") as pool:
        for kernel in kernels:
            pool.submit(compile_one, kernel)
        try:
            yield
        except BaseException:
            given_up.set()
            pool.shutdown(wait=False, cancel_futures=True)  # a start that fails says so at once
            if elsewhere is not None:
                elsewhere.close()
            raise
