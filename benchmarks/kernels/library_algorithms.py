"""Searches cublasLt for the fastest algorithm by shape and number of rows: the source of `linear/library_algorithms.json`.

    PYTHONPATH=kernels python benchmarks/kernels/library_algorithms.py SECONDS FILE [NAME...]

Candidates are what was best for other numbers of rows of the shape, what the library suggests, and the settings that a
simple model of the GPU finds quickest. They are timed in graphs over enough different weights that none is in the
second-level cache when its turn comes, the few best against torch by turns. What gains less than 3 %, is wrong or does not
repeat its result bit for bit is not kept. Entries of FILE stay unless they are searched again. Times are microseconds.
"""

import ctypes
import gc
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from ctypes import byref, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median

import torch
from quire_kernels.linear.algorithm import Algorithm, shape_key
from quire_kernels.linear.library import (
    ATTRIBUTES,
    WORKSPACE_BYTES,
    CheckResult,
    Library,
    LibraryFailure,
    LibraryProduct,
    OpaqueAlgorithm,
    loaded_path,
)
from quire_kernels.linear.tiling import suits_many_rows
from quire_kernels.linear.tuning import suits_few_rows, suits_tiles
from torch import Tensor

SHAPES = {
    "0.6B qkv": (4096, 1024, "plain"),
    "0.6B o": (1024, 2048, "add"),
    "0.6B gate_up": (6144, 1024, "gated"),
    "0.6B down": (1024, 3072, "add"),
    "0.6B logits": (151_936, 1024, "plain"),
    "8B qkv": (6144, 4096, "plain"),  # as of Mistral 7B, with the next three
    "8B o": (4096, 4096, "add"),
    "8B gate_up": (28_672, 4096, "gated"),
    "8B down": (4096, 14_336, "add"),
    "8B logits": (128_256, 4096, "plain"),
    "Qwen2.5-7B o": (3584, 3584, "add"),
    "Qwen2.5-7B gate_up": (37_888, 3584, "gated"),
    "Qwen2.5-7B down": (3584, 18_944, "add"),
}
_DECODE = (*range(64, 256, 16), *range(256, 512, 32), *range(512, 1025, 64))
_FEW = tuple(range(16, 64, 8))
_MANY = (8192, 2048, 4096, 1280, 1536, 1792)
_MAX_LOGITS = 1024  # rows; more never draw in one step
_GAIN = 0.03
_ROTATION_BYTES = 160 << 20
_NUM_SUGGESTIONS = 8  # it has no more
_NUM_MODELLED = 30
_NUM_VARIED = 2
_NUM_FINALISTS = 4
_TOLERANCE = 6e-3
_TILED, _MAX_OPTION, _STAGES = (
    66,
    7,
    35,
)  # the algorithm that the library suggests on Hopper, and its one choice of stages
_CLUSTERS = {2: (1, 1), 3: (2, 1), 4: (4, 1), 5: (1, 2), 6: (2, 2), 7: (4, 2), 8: (1, 4), 9: (2, 4)}
_DRIVEN_BY_OUTPUTS = 1
"""Bit of the option: whether 64 outputs, or else 64 rows, are what a tensor core takes at once (as seen, not documented)."""


@dataclass
class Candidate:
    """An algorithm with its products in a graph, and times of one."""

    algorithm: Algorithm | None  # None: as torch multiplies
    graph: torch.cuda.CUDAGraph
    num_products: int
    times: list[float]

    def time(self, stream: torch.cuda.Stream) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(stream):
            start.record()
            self.graph.replay()
            end.record()
        end.synchronize()
        self.times.append(1e3 * start.elapsed_time(end) / self.num_products)
        return self.times[-1]


class Case:
    """One product: its operands, the library's suggestions and the search."""

    def __init__(self, library: Library, memory: Tensor, shape: tuple[int, int, str], num_rows: int) -> None:
        self._library, self._stream = library, _stream()
        outputs, inputs, kind = shape
        self._add = kind == "add"
        self._key = (num_rows, outputs, inputs, torch.bfloat16, self._add)
        size = outputs * inputs
        copies = max(1, min(28, _ROTATION_BYTES // (2 * size)))
        self._weights = [memory[at * size : (at + 1) * size].view(outputs, inputs) for at in range(copies)]
        self._num_products = copies * max(1, min(4 // copies, int(2e11 / (size * num_rows))))
        self._x = torch.randn(num_rows, inputs, device="cuda").bfloat16()
        self._out = torch.empty(num_rows, outputs, device="cuda", dtype=torch.bfloat16)
        self._blank()
        self._multiply_by_torch(self._weights[0])
        self._expected = self._out.clone()
        torch.cuda.synchronize()

    def suggestions(self) -> list[Algorithm]:
        """What the library offers for it, best guess first."""
        library = self._library
        num_rows, outputs, inputs, *_ = self._key
        sizes = ((inputs, outputs), (inputs, num_rows), (outputs, num_rows))
        weight, x, out = (library.new_layout(14, *size) for size in sizes)
        preference = c_void_p()
        library.call("cublasLtMatmulPreferenceCreate", byref(preference))
        for name, value in ((1, c_uint64(WORKSPACE_BYTES)), (3, c_uint32(2))):  # parts of sums stay float32
            size = c_size_t(ctypes.sizeof(value))
            library.call("cublasLtMatmulPreferenceSetAttribute", preference, c_int(name), byref(value), size)
        results, number = (CheckResult * _NUM_SUGGESTIONS)(), c_int()
        status = library.functions.cublasLtMatmulAlgoGetHeuristic(
            *map(c_void_p, (library.handle, library.new_operation(), weight, x, out, out)),
            preference,
            c_int(_NUM_SUGGESTIONS),
            results,
            byref(number),
        )
        library.call("cublasLtMatmulPreferenceDestroy", preference)
        found = [] if status else [result for result in results[: number.value] if not result.state]
        return [_settings(library, result.algorithm) for result in found]

    def search(
        self, candidates: list[Algorithm], variations: Callable[[Algorithm], list[Algorithm]], seconds: float
    ) -> tuple[float, list[tuple[float, Algorithm]], int]:
        """Time as torch multiplies, times of the best algorithms that are right, best first, and how many were tried."""
        began = time.monotonic()
        default = self._captured(None, self._multiply_by_torch)
        longest = 1.1 * min(default.time(self._stream) for _ in range(3))
        tried: dict[Algorithm, Candidate | None] = {}
        self._try(candidates, longest, tried, began + 0.65 * seconds)
        for candidate in _by_time(tried)[:_NUM_VARIED]:
            if candidate.algorithm:
                self._try(variations(candidate.algorithm), longest, tried, began + seconds)
        right = (each for each in _by_time(tried) if each.algorithm and self._is_right(each.algorithm))
        finalists = [default, *islice(right, _NUM_FINALISTS)]
        for candidate in finalists:
            candidate.times.clear()
        for _ in range(6):
            for candidate in finalists:
                candidate.time(self._stream)
        ranked = [(median(each.times), each.algorithm) for each in finalists if each.algorithm]
        return median(default.times), sorted(ranked, key=lambda each: each[0]), len(tried)

    def _try(
        self,
        algorithms: list[Algorithm],
        longest: float,
        tried: dict[Algorithm, Candidate | None],
        until: float,
    ) -> None:
        """Times those not tried yet twice; None for what takes longer than that, or than those before."""
        for algorithm in algorithms:
            if time.monotonic() > until:
                return
            if algorithm in tried:
                continue
            tried[algorithm] = None
            try:
                candidate = self._captured(algorithm, self._multiply_by(algorithm))
            except LibraryFailure:
                continue
            if candidate.time(self._stream) < 1.3 * longest:  # the first replay is slow
                longest = min(longest, 1.1 * candidate.time(self._stream))
                tried[algorithm] = candidate

    def _captured(self, algorithm: Algorithm | None, multiply: Callable[[Tensor], None]) -> Candidate:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self._stream):
            multiply(self._weights[0])
            graph.capture_begin(capture_error_mode="relaxed")
            for number in range(self._num_products):
                multiply(self._weights[number % len(self._weights)])
            graph.capture_end()
        return Candidate(algorithm, graph, self._num_products, [])

    def _multiply_by(self, algorithm: Algorithm) -> Callable[[Tensor], None]:
        product = LibraryProduct(self._library, self._key, algorithm)
        return lambda weight: product(self._x, weight, self._out)

    def _multiply_by_torch(self, weight: Tensor) -> None:
        if self._add:
            self._out.addmm_(self._x, weight.t())
        else:
            torch.mm(self._x, weight.t(), out=self._out)

    def _is_right(self, algorithm: Algorithm) -> bool:
        multiply = self._multiply_by(algorithm)
        outs: list[Tensor] = []
        for _ in range(2):
            self._blank()
            multiply(self._weights[0])
            outs.append(self._out.clone())
        error = (outs[0] - self._expected).float().norm() / self._expected.float().norm()
        return bool(error < _TOLERANCE) and torch.equal(*outs)

    def _blank(self) -> None:
        self._out.fill_(1.0 if self._add else float("nan"))


class Model:
    """What settings should cost, from the sizes of tiles and clusters alone: good enough to choose what to try."""

    _MULTIPROCESSORS = 132
    _PRODUCTS = 2048  # per multiprocessor and clock
    _BYTES = 28  # per multiprocessor and clock, from the second-level cache
    _CLOCKS = 1700  # per microsecond
    _MEMORY = 4.3e6  # bytes per microsecond
    _WAITING = 0.05  # of the time, for every program more than two that share what they copy
    _JOIN = 3.5  # microseconds that the sum of parts takes beside its bytes

    def __init__(self, library: Library) -> None:
        self._settings = self._all(library)
        columns = [(*tile, *_CLUSTERS[each.cluster], each.option & 1) for each, tile in self._settings]
        self._columns = torch.tensor(columns, dtype=torch.float64).reshape(-1, 5).t()

    def quickest(self, shape: tuple[int, int, str], num_rows: int) -> list[Algorithm]:
        """The settings that should be quickest, at most two of a tile."""
        if not self._settings:
            return []
        costs = torch.stack([self._cost(shape, num_rows, splits) for splits in (1, 2, 3, 4)])
        found: list[Algorithm] = []
        of_tile: Counter[int] = Counter()
        for at in costs.flatten().topk(min(2000, costs.numel()), largest=False).indices.tolist():
            settings, splits = self._settings[at % len(self._settings)][0], at // len(self._settings) + 1
            of_tile[settings.tile] += 1
            if of_tile[settings.tile] <= 2:
                found.append(settings if splits == 1 else replace(settings, splits=splits, reduction=2))
            if len(found) == _NUM_MODELLED:
                break
        return found

    def variations(self, algorithm: Algorithm) -> list[Algorithm]:
        """Others with the same tile."""
        same = [settings for settings, _ in self._settings if settings.tile == algorithm.tile]
        return [replace(each, splits=algorithm.splits, reduction=algorithm.reduction) for each in same]

    def _cost(self, shape: tuple[int, int, str], num_rows: int, splits: int) -> Tensor:
        outputs, inputs, _ = shape
        tall, wide, by_outputs, by_rows, driven_by_outputs = self._columns
        core = (
            torch.where(driven_by_outputs > 0, tall * wide.clamp(min=32), wide * tall.clamp(min=32))
            / self._PRODUCTS
        )
        copy = 2 * (tall / by_rows.sqrt() + wide / by_outputs.sqrt()) / self._BYTES
        in_step = 1 + self._WAITING * (by_outputs * by_rows - 2).clamp(min=0)
        step = (torch.maximum(core, copy) + 0.25 * torch.minimum(core, copy)) * in_step
        across = (outputs / tall / by_outputs).ceil() * by_outputs
        down = (num_rows / wide / by_rows).ceil() * by_rows
        waves = (across * down * splits / self._MULTIPROCESSORS).ceil()
        busy = waves * step * inputs / splits / self._CLOCKS
        memory = 2 * (outputs * inputs + num_rows * (inputs + outputs)) / self._MEMORY
        join = (self._JOIN + 8 * splits * num_rows * outputs / self._MEMORY / 2) if splits > 1 else 0.0
        return torch.maximum(busy, torch.full_like(busy, memory)) + 0.3 * busy.clamp(max=memory) + join

    @staticmethod
    def _all(library: Library) -> list[tuple[Algorithm, tuple[int, int]]]:
        """Every setting that the library accepts for a large product, with its tile."""
        header = Path(loaded_path() or "").parent.parent / "include" / "cublasLt.h"
        if not header.exists():
            print(f"no {header}: only what the library suggests is tried", file=sys.stderr)
            return []
        tiles = re.findall(r"CUBLASLT_MATMUL_TILE_(\d+)x(\d+) = (\d+)", header.read_text())
        operation, square = library.new_operation(), library.new_layout(14, 4096, 4096)
        found: list[tuple[Algorithm, tuple[int, int]]] = []
        for tall, wide, tile in (map(int, each) for each in tiles):
            for option in range(_MAX_OPTION + 1):
                for cluster in _CLUSTERS:
                    algorithm = Algorithm(_TILED, tile, 1, 0, 0, option, _STAGES, 0, cluster)
                    try:
                        library.check(operation, (square,) * 4, library.new_algorithm(14, algorithm))
                    except LibraryFailure:
                        continue
                    found.append((algorithm, (tall, wide)))
        return found


def _by_time(tried: dict[Algorithm, Candidate | None]) -> list[Candidate]:
    return sorted((each for each in tried.values() if each), key=lambda candidate: min(candidate.times))


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()


def _settings(library: Library, opaque: OpaqueAlgorithm) -> Algorithm:
    values: list[int] = []
    for name, kind in enumerate(ATTRIBUTES):
        value, written = kind(), c_size_t()
        into = (byref(value), c_size_t(ctypes.sizeof(kind)), byref(written))
        library.call("cublasLtMatmulAlgoConfigGetAttribute", byref(opaque), c_int(name), *into)
        values.append(value.value)
    return Algorithm(*values)


def _cases(names: list[str]) -> list[tuple[str, int]]:
    """Shapes and numbers of rows, the usual ones first; without those that the library never gets."""
    wanted = [name for name in SHAPES if not names or name in names]
    cases = [(name, num_rows) for num_rows in (*_DECODE, *_MANY, *_FEW) for name in wanted]
    return [(name, num_rows) for name, num_rows in cases if reaches_library(name, num_rows)]


def reaches_library(name: str, num_rows: int) -> bool:
    """Whether a product of this shape is served by the library, by the rules of the kernels of ours that would take it."""
    outputs, inputs, kind = SHAPES[name]
    if name.endswith("logits") and num_rows > _MAX_LOGITS:
        return False
    gated = kind == "gated"
    outputs = outputs // 2 if gated else outputs
    if suits_few_rows(num_rows, outputs, inputs, gated=gated) or suits_tiles(
        num_rows, outputs, inputs, gated=gated
    ):
        return False
    return kind == "add" or not suits_many_rows(num_rows, outputs, inputs, gated=gated)


def _of_neighbours(known: dict[str, str], num_rows: int) -> list[Algorithm]:
    """The best algorithms for other numbers of rows, the nearest first."""
    near = sorted((abs(int(rows) - num_rows), text) for rows, text in known.items())
    return list(dict.fromkeys(Algorithm.parse(text) for _, text in near))[:6]


def _usual(by_shape: dict[str, dict[str, str]]) -> list[Algorithm]:
    """The algorithms that are best most often."""
    often = Counter(text for known in by_shape.values() for text in known.values())
    return [Algorithm.parse(text) for text, _ in often.most_common(10)]


class Search:
    """What is known by shape and number of rows, and the cases that add to it."""

    def __init__(self, library: Library, by_shape: dict[str, dict[str, str]]) -> None:
        self.by_shape = by_shape
        self._library = library
        self._memory = torch.randn(1 << 29, device="cuda").mul_(0.02).bfloat16()
        self._model = Model(library)

    def try_case(self, name: str, num_rows: int, seconds: float) -> None:
        """Search for so long, note what gains, and print what was seen."""
        outputs, inputs, kind = shape = SHAPES[name]
        known = self.by_shape.setdefault(shape_key(outputs, inputs, add=kind == "add"), {})
        case = Case(self._library, self._memory, shape, num_rows)
        candidates = [*_of_neighbours(known, num_rows), *case.suggestions(), *_usual(self.by_shape)]
        candidates += self._model.quickest(shape, num_rows)
        default, ranked, num_tried = case.search(candidates, self._model.variations, seconds)
        gain = 1 - ranked[0][0] / default if ranked else 0.0
        known.pop(str(num_rows), None)
        if gain >= _GAIN:
            known[str(num_rows)] = str(ranked[0][1])
        best = "; ".join(f"{microseconds:.2f} {algorithm}" for microseconds, algorithm in ranked[:3])
        seen = f"torch {default:8.2f} gain {100 * gain:5.1f} % of {num_tried:3}: {best}"
        print(f"{name:18} {num_rows:5} {seen}", flush=True)

    def content(self) -> str:
        """The file of what is known, with what it was measured on."""
        properties = torch.cuda.get_device_properties(0)
        content = {
            "version": self._library.version,
            "capability": [properties.major, properties.minor],
            "num_multiprocessors": properties.multi_processor_count,
            "algorithms": {
                shape: {str(rows): known[str(rows)] for rows in sorted(map(int, known))}
                for shape, known in self.by_shape.items()
            },
        }
        return json.dumps(content, indent=1) + "\n"


def main(seconds: float, path: Path, names: list[str]) -> None:
    """Searches for so long, and writes what it found."""
    until = time.monotonic() + seconds
    gc.disable()
    torch.set_num_threads(1)
    torch.mm(*torch.zeros(2, 1, 1, device="cuda"))  # loads the library
    known = json.loads(path.read_text())["algorithms"] if path.exists() else {}
    search = Search(Library(loaded_path() or "libcublasLt.so", torch.device("cuda", 0)), known)
    cases = _cases(names)
    print(f"{len(cases)} cases, {time.monotonic() - until + seconds:.1f} s for setting up", flush=True)
    for number, (name, num_rows) in enumerate(cases):
        left = until - time.monotonic()
        if left < 0.2:
            print(f"no time for {len(cases) - number} cases, from {name} with {num_rows} rows on")
            break
        try:
            search.try_case(name, num_rows, max(0.04, 0.7 * left / (len(cases) - number)))
        except RuntimeError as failure:
            print(f"{name} with {num_rows} rows failed: {failure}", flush=True)
    path.write_text(search.content())


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
