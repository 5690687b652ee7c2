"""Captured steps: one CUDA graph per shape, all over one memory pool.

Made once at start-up, largest first. Knows how to capture and replay; what a step does is the caller's.
"""

from collections.abc import Callable, Iterable

import torch

from quire_worker.step_shape import StepShape


class StepGraphs:
    """Graphs by shape."""

    def __init__(self) -> None:
        self._graphs: dict[StepShape, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def capture(
        self,
        shapes: Iterable[StepShape],
        load: Callable[[StepShape], None],
        run: Callable[[StepShape], None],
        on_progress: Callable[[int], None],
    ) -> None:
        """Captures `run` at every shape, after `load`; it runs once before, so that its kernels are compiled and loaded."""
        for shape in shapes:
            load(shape)
            run(shape)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run(shape)
            self._graphs[shape] = graph
            on_progress(len(self._graphs))

    def replay(self, shape: StepShape) -> bool:
        """Launches the step; False when the shape was not captured."""
        graph = self._graphs.get(shape)
        if graph is None:
            return False
        graph.replay()
        return True
