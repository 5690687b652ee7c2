"""The worker alone: the scheduler core and the worker's served code path in one process, no gRPC, no socket.

Plans and results cross the real wire form; two plans are in flight. Every repetition starts with a fresh core, hence
with an empty prefix cache. Knows how to run requests and take times, not which.
"""

import gc
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from quire_scheduler.core import Sampling
from quire_worker.compiler_pool import compiler_pool
from quire_worker.loading import load_model

from benchmarks.gpu.model import Model
from benchmarks.gpu.workload import Ask, num_tokens_out
from quire import garbage
from quire.config import WorkerConfig
from quire.v1 import sampling_pb2
from tests.doubles.in_process_engine import InProcessEngine

_WASTE_INTERVAL = 8
"""Steps between two looks at the KV cache; a look costs about half a millisecond at a thousand sequences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One repetition of a workload."""

    seconds: float
    num_tokens: int
    num_steps: int
    num_preemptions: int

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second."""
        return self.num_tokens / self.seconds


class WorkerAlone:
    """One loaded model."""

    def __init__(self, model: Model) -> None:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            model.write(Path(folder))
            config = WorkerConfig(**model.flags(Path(folder)))
            self._loaded = load_model(config, compiler_pool(config.device))
        self._limits = model.scheduler_flags
        self.load_s = time.perf_counter() - start
        garbage.settle()  # as the processes do once they serve

    def run(
        self, asks: list[Ask], num_streams: int, each_step: Callable[[InProcessEngine], None] | None = None
    ) -> Run:
        """A closed loop of `num_streams` over the requests; checks every token count."""
        engine = self.fresh_engine()
        waiting = deque(asks)
        start = time.perf_counter()
        while True:
            while waiting and engine.num_live < num_streams:
                _add(engine, waiting.popleft())
            if not engine.step():
                break
            if each_step is not None:
                each_step(engine)
        seconds = time.perf_counter() - start
        _check_lengths(engine, asks)
        stats = engine.core.stats()
        return Run(
            seconds=seconds,
            num_tokens=num_tokens_out(asks),
            num_steps=stats.num_steps,
            num_preemptions=stats.num_preemptions,
        )

    def kv_waste(self, asks: list[Ask]) -> list[float]:
        """Share of the token places in allocated KV blocks that hold no token, looked at while all requests run."""
        ratios: list[float] = []
        num_steps = 0

        def look(engine: InProcessEngine) -> None:
            nonlocal num_steps
            num_steps += 1
            if num_steps % _WASTE_INTERVAL == 0 and engine.num_live:
                ratios.append(engine.core.stats().kv_waste_ratio)

        self.run(asks, len(asks), look)
        return ratios

    def first_token_and_gap_s(self, ask: Ask) -> tuple[float, float]:
        """A lone request: time to its first token, and mean time per token after it."""
        engine = self.fresh_engine()
        start = time.perf_counter()
        handle = _add(engine, ask)
        first = _until_first_token(engine, handle)
        engine.run()
        end = time.perf_counter()
        _check_lengths(engine, [ask])
        return first - start, (end - first) / max(1, ask.num_out - 1)

    def first_token_s(self, engine: InProcessEngine, prompt: list[int]) -> tuple[float, int]:
        """Time to the first token of a request of one token in a given engine, and how many tokens were cached."""
        start = time.perf_counter()
        handle = _add(engine, Ask(prompt_token_ids=prompt, num_out=1, seed=0))
        first = _until_first_token(engine, handle)
        engine.run()
        return first - start, engine.cached_tokens.get(handle, 0)

    def decode_step_s(self, asks: list[Ask]) -> float:
        """Median time between two results while every request decodes."""
        engine = self.fresh_engine()
        for ask in asks:
            _add(engine, ask)
        outputs = engine.outputs.values()
        while not all(output.token_ids for output in outputs):
            assert engine.step(), "nothing left to do before every request has a token"
        times: list[float] = []
        while engine.num_live == len(asks):
            times.append(time.perf_counter())
            engine.step()
        engine.run()
        _check_lengths(engine, asks)
        return median(after - before for before, after in pairwise(times))

    def fresh_engine(self) -> InProcessEngine:
        """A core without requests and with an empty prefix cache. The one before is garbage: no process that serves has such."""
        gc.collect()
        return InProcessEngine.of(self._loaded, **self._limits)


def _add(engine: InProcessEngine, ask: Ask) -> int:
    sampling = Sampling(max_tokens=ask.num_out, seed=ask.seed, **_core_sampling(ask.sampling))
    return engine.add(ask.prompt_token_ids, sampling)


def _core_sampling(sampling: dict[str, Any]) -> dict[str, Any]:
    """The core's names; a constraint as it travels."""
    constraint = sampling.get("structured_outputs")
    if constraint is None:
        return sampling
    grammar = sampling_pb2.StructuredOutputsParams(**constraint).SerializeToString()
    rest = {name: value for name, value in sampling.items() if name != "structured_outputs"}
    return rest | {"grammar": grammar}


def _until_first_token(engine: InProcessEngine, handle: int) -> float:
    output = engine.outputs[handle, 0]
    while not output.token_ids:
        assert engine.step(), "nothing left to do before the first token"
    return time.perf_counter()


def _check_lengths(engine: InProcessEngine, asks: list[Ask]) -> None:
    brought = [len(output.token_ids) for output in engine.outputs.values()]
    wanted = [ask.num_out for ask in asks]
    assert brought == wanted, f"{sum(brought)} tokens came where {sum(wanted)} were asked for"
