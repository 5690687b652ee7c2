"""Checks constraints before they are let in: compiled off the event loop, bounded in number and time.

A worker compiles what passes here once more, over its vocabulary; what only that shows ends the request there. Knows no
model and no request.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from quire.errors import InvalidRequest, Overloaded
from quire.grammar import GrammarError, check_grammar, grammar_of
from quire.structured_outputs import StructuredOutputsParams

_NUM_THREADS = 2
_MAX_WAITING = 256
_MAX_KEPT = 1024
_TIMEOUT_S = 2.0
_RETRY_AFTER_MS = 500
_SHOWN_LEN = 80


class GrammarChecker:
    """Remembers the constraints that passed lately."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar-checker")
        self._passed: OrderedDict[StructuredOutputsParams, None] = OrderedDict()
        self._num_waiting = 0

    async def check(self, constraint: StructuredOutputsParams) -> None:
        """Raises `InvalidRequest` when it cannot be compiled, `Overloaded` when too many wait to be."""
        if constraint in self._passed:
            self._passed.move_to_end(constraint)
            return
        if self._num_waiting >= _MAX_WAITING:
            raise Overloaded(f"{_MAX_WAITING} grammars wait to be compiled", retry_after_ms=_RETRY_AFTER_MS)
        self._num_waiting += 1
        job = asyncio.get_running_loop().run_in_executor(self._threads, _compile, constraint)
        job.add_done_callback(self._end_job)
        try:
            await asyncio.wait_for(asyncio.shield(job), _TIMEOUT_S)
        except TimeoutError as error:
            raise _refusal(constraint, f"does not compile within {_TIMEOUT_S:g} s") from error
        except GrammarError as error:
            raise _refusal(constraint, str(error)) from error
        self._passed[constraint] = None
        if len(self._passed) > _MAX_KEPT:
            self._passed.popitem(last=False)

    def _end_job(self, job: "asyncio.Future[None]") -> None:
        self._num_waiting -= 1
        if not job.cancelled():
            job.exception()  # whoever waited may have gone


def _compile(constraint: StructuredOutputsParams) -> None:
    check_grammar(grammar_of(constraint))


def _refusal(constraint: StructuredOutputsParams, reason: str) -> InvalidRequest:
    name = constraint.constraint
    value = str(getattr(constraint, name))
    shown = value if len(value) <= _SHOWN_LEN else value[:_SHOWN_LEN] + "…"
    return InvalidRequest(
        f"structured_outputs.{name}={shown!r}: {reason}", field=f"structured_outputs.{name}"
    )
