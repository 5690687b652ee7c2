"""The padded sizes of a step, as a pure function of its plan: every rank and every replay chooses alike.

A graph is captured per shape, so there must be few of them; padding is wasted work, so they must be close. Knows
numbers only.
"""

from bisect import bisect_left
from dataclasses import dataclass

_TOKEN_MULTIPLE = 64
"""Steps too large for a graph are padded to this, so that launch arguments stay of one kind."""

_FEW_ROWS = 64
"""Decode steps of so few rows have graphs of their own for contexts up to `_SHORT_CONTEXT`: cutting a short sequence into
as many parts as a long one costs them up to a tenth of the step, measured on one H200."""

_SHORT_CONTEXT = 1024

_FULL_STEP_ROWS = 128
"""Steps of as many tokens as there may be, which prompts fill while some wait, have graphs in so few rows."""

_SLOW_SIZES = (448, 832)
"""Not padded to: the library's products of so many rows take longer than those of the next size, by a third at 448 rows of
a 4,096 wide model (a layer: 397 us; 243 at 384 rows, 300 at 512). Measured on one H200, three published shapes."""


@dataclass(frozen=True, slots=True, order=True)
class StepShape:
    """T tokens in R rows, padding included."""

    num_tokens: int
    num_rows: int
    is_decode: bool
    """Whether row i has exactly token i, or is padding."""
    max_seq_len: int
    """No sequence is longer; decides into how many parts attention cuts a sequence."""


class ShapeTable:
    """The shapes of a device; `exact` ones where nothing is captured."""

    def __init__(
        self, max_num_seqs: int, max_num_tokens: int, max_model_len: int, graph_token_limit: int
    ) -> None:
        self._decode_rows = _up_to(max_num_seqs, _decode_sizes())
        self._mixed_rows = _up_to(max_num_seqs, (32, 128, 512))
        self._mixed_tokens = _up_to(min(max_num_tokens, graph_token_limit), _mixed_sizes())
        self._contexts = _up_to(max_model_len, (_SHORT_CONTEXT,))
        self._captures = graph_token_limit > 0
        self._max_num_tokens = max_num_tokens

    def captured(self) -> list[StepShape]:
        """What to capture, largest first, so that the later ones fit into the memory of the first."""
        decode = {
            self.shape_of(rows, rows, is_decode=True, max_seq_len=context)
            for rows in self._decode_rows
            for context in self._contexts
            if self._captures
        }
        mixed = [
            StepShape(num_tokens, num_rows, False, self._contexts[-1])
            for num_tokens in self._mixed_tokens
            for num_rows in self._mixed_rows
            if num_rows <= _at_least(self._mixed_rows, min(num_tokens, self._mixed_rows[-1]))
        ]
        # A step that prompts fill: its kernels take long, but the first of them would wait for the host to launch it.
        full = [
            StepShape(self._max_num_tokens, num_rows, False, self._contexts[-1])
            for num_rows in self._mixed_rows
            if self._captures and num_rows <= _FULL_STEP_ROWS
        ]
        return sorted({*decode, *mixed, *full}, reverse=True)

    def captured_rows(self) -> list[int]:
        """The numbers of rows of what is captured, largest first."""
        return sorted({shape.num_rows for shape in self.captured()}, reverse=True)

    def shape_of(self, num_tokens: int, num_rows: int, *, is_decode: bool, max_seq_len: int) -> StepShape:
        """The smallest shape that holds the step."""
        longest = self._contexts[-1]
        if is_decode:
            size = _at_least(self._decode_rows, num_rows)
            few = size <= _FEW_ROWS
            return StepShape(size, size, True, _at_least(self._contexts, max_seq_len) if few else longest)
        rows = _at_least(self._mixed_rows, num_rows)
        if self._mixed_tokens and num_tokens <= self._mixed_tokens[-1]:
            return StepShape(_at_least(self._mixed_tokens, num_tokens), rows, False, longest)
        padded = -(-num_tokens // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE
        return StepShape(max(num_tokens, min(padded, self._max_num_tokens)), rows, False, longest)


def _decode_sizes() -> list[int]:
    few = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, 512, 32)]
    return [size for size in (*few, *range(512, 8193, 64)) if size not in _SLOW_SIZES]


def _mixed_sizes() -> list[int]:
    return [
        32,
        *range(64, 384, 64),
        *range(384, 1024, 128),
        *range(1024, 2048, 256),
        *range(2048, 16385, 512),
    ]


def _up_to(limit: int, sizes: "list[int] | tuple[int, ...]") -> list[int]:
    """The sizes below the limit, and the limit."""
    return [*(size for size in sizes if size < limit), limit] if limit else []


def _at_least(sizes: list[int], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]
