"""Makes the key under which Triton keeps a binary on disk depend on sources alone.

A key counts the constants of a function and of all that it calls. Triton takes a callee's constants over before it asks
for the callee's hash, by which they are found: a function that is hashed before its callees lacks their constants, and one
that is hashed after them has them. Threads that compile hash in an order of their own, so that one start missed what
another had kept. Knows no kernel.
"""

from typing import Any

from triton.runtime import cache as triton_cache
from triton.runtime.jit import DependenciesFinder

_hash_of_triton = getattr(triton_cache, "triton_key", None)
_NAME = "_update_hash"
_update_hash = getattr(DependenciesFinder, _NAME, None)


def hash_callees_first() -> None:
    """From here on, in the whole process. What was hashed before keeps its key."""
    if _update_hash is not None:  # a Triton that lacks it hashes in its own way
        setattr(DependenciesFinder, _NAME, _update_hash_after_callee)


def hash_compiler() -> None:
    """Reads all of Triton, which is part of every key: 0.3 s on a fast CPU, most of it outside the interpreter. Whoever asks for
    keys afterwards finds it done; several who ask at once each do it.
    """
    if _hash_of_triton is not None:
        _hash_of_triton()


def _update_hash_after_callee(finder: Any, callee: Any) -> None:
    assert _update_hash is not None
    _ = callee.cache_key  # finds the constants; another thread that is at it is waited for
    _update_hash(finder, callee)
