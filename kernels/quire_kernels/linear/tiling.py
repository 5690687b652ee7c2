"""How a product of many rows is cut into tiles, and whether it is: settings of `many_rows.py`, for one multiprocessor each.

Measured on one H200, E as a whole step among it (`benchmarks/notes.md`); `benchmarks/kernels/linear_many_rows.py`
repeats it. Knows no device.
"""

from dataclasses import dataclass

TILE_WEIGHTS = 256
"""Weights of a tile: outputs, or gates and ups of half as many."""

GROUP_ROWS = 64
STEP_INPUTS = 64
_MIN_STEPS = 16
"""Steps that a piece has at least: adding pieces up takes about as long as 14 of them, 10 us."""


@dataclass(frozen=True, kw_only=True)
class ManyRowsConfig:
    """How a product of many rows is cut."""

    groups: int
    """Warpgroups of 64 rows: 2 or 3."""

    num_stages: int
    band: int
    """Blocks of rows whose tiles are worked on side by side, so that these rows and a few strips of weights are in the
    second-level cache."""

    to_and_fro: bool = False
    """Whether every other turn goes through its inputs backwards, and every other band through its strips."""

    max_pieces: int = 4
    """Into how many pieces of its inputs a tile may be cut where the last turn would leave multiprocessors idle."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """The tiles of one product."""

    num_strips: int
    num_whole: int
    """Tiles that are not cut; the others come last."""

    num_pieces: int
    """Of each of the others."""

    num_items: int
    """Whole tiles and pieces."""


WIDE = ManyRowsConfig(groups=2, num_stages=4, band=16)
TALL = ManyRowsConfig(groups=3, num_stages=3, band=12)
_TALL_ROWS = 4096
"""From so many rows on, tiles are tall: they read a fifth less for a product, and at full power one with a gate takes 2.83 ms
by them and 2.91 by others (8,192 rows of an 8B shape; the library, and then the gate, 2.94 to 3.06)."""

TALL_GATED = ManyRowsConfig(groups=3, num_stages=3, band=22, to_and_fro=True)
"""To and fro, most of a high band is in the second-level cache when the next turn begins: 2.77 ms where `TALL` takes 2.80. What
has fewer strips gains nothing by it (6,144 outputs: 603 us and 600)."""

MANY_ROWS = 1024
"""Fewer are left to other kernels and the library, whatever their shape."""

_NARROW_ROWS = 2048
_NARROW = 16 << 20
"""Weights of a gate up to which so many rows are wanted: 1,024 rows of a 0.6B shape take 26 us by either, 2,048 take 38 and 50."""

_PLAIN_ROWS = 4096
_PLAIN_OUTPUTS, _PLAIN_INPUTS = 6144, 2048
"""A product without a gate saves no pass over what it leaves, only what tall tiles do not read again: 8,192 rows of 6,144
outputs take 603 us instead of 625. With 4,096 outputs, of which few tiles are left for the last turn, the library is ahead."""


def suits_many_rows(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> bool:
    """Whether a product of many rows is faster here than in the library."""
    if gated:
        return num_rows >= (MANY_ROWS if num_outputs * num_inputs > _NARROW else _NARROW_ROWS)
    return num_rows >= _PLAIN_ROWS and num_outputs >= _PLAIN_OUTPUTS and num_inputs >= _PLAIN_INPUTS


_HEADS_ROWS = 2048
"""With rotation and the cache's writes behind it, such a product is ahead from fewer rows on: 2,048 of the 8B shape take 137 us
in one launch, the library and the other kernel 151; 8,192 rows 536 and 572."""


def suits_heads(num_rows: int, num_outputs: int, num_inputs: int) -> bool:
    """Whether a product of many rows that makes heads is faster here than in the library, rotation included."""
    return num_rows >= _HEADS_ROWS and num_outputs >= _PLAIN_OUTPUTS and num_inputs >= _PLAIN_INPUTS


def many_rows_config(num_rows: int, *, gated: bool) -> ManyRowsConfig:
    """Settings for a product of many rows."""
    if num_rows < _TALL_ROWS:
        return WIDE
    return TALL_GATED if gated else TALL


def cut_tiles(
    config: ManyRowsConfig,
    num_rows: int,
    num_outputs: int,
    num_inputs: int,
    num_programs: int,
    *,
    gated: bool,
    normed: bool = False,
) -> Tiling:
    """Cut a product into tiles, and those of the last turn into pieces, until every program has one. Where rows are to be
    ``normed``, the tile that is taken first of each block of rows is whole: it has all inputs to find their factors by.
    """
    num_strips = -(-num_outputs // (TILE_WEIGHTS // 2 if gated else TILE_WEIGHTS))
    num_blocks = -(-num_rows // (config.groups * GROUP_ROWS))
    num_tiles = num_blocks * num_strips
    num_last = num_tiles % num_programs
    pieces = min(config.max_pieces, num_inputs // STEP_INPUTS // _MIN_STEPS)
    pieces = min(pieces, num_programs // num_last) if num_last else 1
    last_band = (num_blocks - 1) // config.band * config.band
    last_first = last_band * num_strips + num_blocks - 1 - last_band
    if pieces <= 1 or (normed and last_first >= num_tiles - num_last):
        num_last, pieces = 0, 1
    num_whole = num_tiles - num_last
    return Tiling(
        num_strips=num_strips,
        num_whole=num_whole,
        num_pieces=pieces,
        num_items=num_whole + num_last * pieces,
    )
