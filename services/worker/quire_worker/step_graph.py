"""Captured launches: CUDA graphs by what their sizes follow from, all over one memory pool.

Made once at start-up, largest first. Knows how to capture and replay; what is launched is the caller's.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Generic, TypeVar

import torch

from quire_worker.step_shape import StepShape

Size = TypeVar("Size", bound=Hashable)


class GraphSet(Generic[Size]):
    """Graphs of one sequence of launches, one for each size of it."""

    def __init__(self, pool: Any, stream: torch.cuda.Stream) -> None:
        self._graphs: dict[Size, torch.cuda.CUDAGraph] = {}
        self._pool = pool
        self._stream = stream

    def capture(
        self,
        sizes: Iterable[Size],
        load: Callable[[Size], None],
        rehearse: Callable[[Size], None],
        run: Callable[[Size], None],
        on_progress: Callable[[], None],
    ) -> None:
        """Captures `run` at every size, after `load`; `rehearse` comes before it and must launch every kernel of `run`, so
        that all are compiled and loaded.
        """
        for size in sizes:
            load(size)
            rehearse(size)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run(size)
            self._graphs[size] = graph
            on_progress()

    def replay(self, size: Size) -> bool:
        """Launches it; False when the size was not captured."""
        graph = self._graphs.get(size)
        if graph is None:
            return False
        graph.replay()
        return True


ANY_CHANGES = 0
"""The one size of what enters the changes before a step: it looks up how many there are."""


class StepGraphs:
    """What enters the changes before a step, and the step's two halves: forward passes by shape, draws by number of rows.

    The halves are graphs of their own because the host may have something to say between them, and because draws depend on so
    little that a few graphs serve every shape.
    """

    def __init__(self) -> None:
        pool, stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
        self.changes = GraphSet[int](pool, stream)
        self.forwards = GraphSet[StepShape](pool, stream)
        self.draws = GraphSet[int](pool, stream)
