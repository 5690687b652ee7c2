"""Which algorithm of the library multiplies fastest, by shape: a table, and its lookup. Knows no library and no GPU.

The library chooses by a rule of its own that misses by up to a third at some numbers of rows. The table beside this file
was measured by `benchmarks/kernels/library_algorithms.py`, and holds for one version of the library on one kind of GPU.
"""

import json
from dataclasses import astuple, dataclass
from functools import cache
from importlib.resources import files

_TABLE = "library_algorithms.json"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """An algorithm of cublasLt and its settings, in the numbers of its header: `cublasLtMatmulAlgoConfigAttributes_t`."""

    number: int
    tile: int
    splits: int
    reduction: int
    swizzle: int
    option: int
    stages: int
    inner_shape: int
    cluster: int

    @classmethod
    def parse(cls, text: str) -> "Algorithm":
        """The inverse of `str`. Raises ValueError for anything else."""
        values = [int(value) for value in text.split(",")]
        if len(values) != len(cls.__slots__) or min(values) < 0:
            raise ValueError(f"an algorithm is {len(cls.__slots__)} numbers from 0 on, and {text!r} is not")
        return cls(*values)

    def __str__(self) -> str:
        return ",".join(map(str, astuple(self)))


@dataclass(frozen=True, slots=True, eq=False)
class AlgorithmTable:
    """Algorithms by shape, and what they were measured with."""

    version: int
    """Of the library, as it says itself; another version may mean something else by the same numbers."""
    capability: tuple[int, int]
    num_multiprocessors: int
    by_shape: dict[str, dict[int, Algorithm]]
    """By `shape_key` and number of rows."""

    @classmethod
    def parse(cls, text: str) -> "AlgorithmTable":
        """The table that a file holds. Raises ValueError or KeyError for a file that is not one."""
        content = json.loads(text)
        by_shape = {
            shape: {int(rows): Algorithm.parse(text) for rows, text in by_rows.items()}
            for shape, by_rows in content["algorithms"].items()
        }
        major, minor = content["capability"]
        return cls(content["version"], (major, minor), content["num_multiprocessors"], by_shape)

    def find(self, num_outputs: int, num_inputs: int, num_rows: int, *, add: bool) -> Algorithm | None:
        """That for `x [num_rows, num_inputs]` by `weight [num_outputs, num_inputs]`, added to what is there or not; None
        where the library's own choice is as fast, or nobody looked."""
        return self.by_shape.get(shape_key(num_outputs, num_inputs, add=add), {}).get(num_rows)


def shape_key(num_outputs: int, num_inputs: int, *, add: bool) -> str:
    """The name of a shape in the table, such as `4096x1024`, or `1024x2048+` where the product is added."""
    return f"{num_outputs}x{num_inputs}{'+' if add else ''}"


@cache
def tuned_algorithms() -> AlgorithmTable:
    """The table of this package."""
    return AlgorithmTable.parse((files(__package__) / _TABLE).read_text())
