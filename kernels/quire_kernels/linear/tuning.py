"""Tuned launch settings of the products of one, of few and of some hundred rows. Data and its lookup only.

Measured on one H200 by `benchmarks/kernels/linear_tiles.py` and within whole decode steps.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GemvConfig:
    """How a matrix-vector product is cut: outputs per program and inputs per pass over them."""

    rows: int
    span: int
    num_warps: int = 4
    num_stages: int = 2


_VOCABULARY = 65536  # outputs from which a product is that of logits


def gemv_config(num_outputs: int, num_inputs: int, *, gated: bool) -> GemvConfig:
    """Settings for a product of so many outputs and inputs; `gated` ones read twice the weights per output."""
    if gated:
        if num_inputs < 2048:
            return GemvConfig(rows=2, span=512, num_warps=2)
        return GemvConfig(rows=1, span=1024, num_warps=8)
    if num_outputs >= _VOCABULARY:
        return GemvConfig(rows=4, span=2048)
    if num_inputs >= 4096:
        return GemvConfig(rows=8, span=1024, num_stages=4)
    if num_inputs >= 2048:
        return GemvConfig(rows=8, span=2048, num_warps=8)
    return GemvConfig(rows=4, span=512, num_warps=2)


_MAX_FEW_ROWS = 64
_SMALL_WEIGHT = 8 << 20
"""Elements of a weight up to which a product of few rows is ours: such products spend most of their time starting and
ending, and steps of a 0.6B shape gained 13 to 20 % of their time."""

_SHARED_BYTES = 200 << 10
_MULTIPROCESSORS = 132  # of the GPU that settings were measured on
_FEED_FORWARD = 12288
"""Width of a feed-forward block from which the large weights into and out of it are ours in models of any width: a 7B layer's
products gain 2 to 5 % by them at 2, 16 and 64 rows, while those around attention are up to 6 % slower than the library's, by these
settings."""

_MAX_ROWS_OF_AN_OPERAND = 16
"""As many as a tensor core takes at once."""

_MIN_MODEL_WIDTH, _MAX_MODEL_WIDTH = 3584, 4096
"""All products of 2 to 64 rows of a layer of models from the one to the other of these widths, which were both measured, are ours,
since all launches overlap then. A layer of the 8B shape takes 113 us instead of the library's 126 at 16 rows, 117 instead of 125
at 32 and 123 instead of 131 at 64, one of the Qwen2.5-7B shape 117 instead of 132, 127 instead of 135 and 133 instead of 140; on
another H200 up to 7 less. Logits of 2 to 16 rows are ours as well; where `tiles_hopper` cannot run, the others only of so few."""


@dataclass(frozen=True, kw_only=True)
class RowsConfig:
    """How a product of few rows is cut: outputs per program, inputs per pass and splits of them."""

    strip: int
    span: int
    splits: int
    shares: int = 1
    """Warps among which the inputs of a pass are divided, else its outputs: chains of products are so much shorter."""
    num_warps: int = 4
    num_stages: int = 5
    ahead: int = 512
    """Inputs whose weights a program asks for before its input is there. More is slower: 2,048 for each program of gate and up
    push each other out of the second-level cache (7 us)."""
    rotate: bool = False
    """Whether strips begin at different inputs: 1 % of a product whose programs are many and short of nothing else."""


def suits_folded_norm(num_weights: int) -> bool:
    """Whether a norm beside a product of so many weights is better folded into it than launched. Not measured for large ones."""
    return num_weights <= _SMALL_WEIGHT


def suits_few_rows(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> bool:
    """Whether a product of 2 rows or more is faster here than in the library; `gated` ones have twice the weights."""
    if num_rows > _MAX_FEW_ROWS:
        return False
    if num_outputs * num_inputs * (2 if gated else 1) <= _SMALL_WEIGHT:
        return True
    if num_rows <= _MAX_ROWS_OF_AN_OPERAND and _is_of_measured_width(num_outputs, num_inputs):
        return True
    if 16 < num_rows <= 32:
        # Right, but no faster: gate and up of an 8B layer take 66 us, and 61 to 64 by the library.
        return False
    if gated:
        return num_outputs >= _FEED_FORWARD
    return num_inputs >= _FEED_FORWARD and num_outputs < num_inputs


def rows_config(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> RowsConfig:
    """Settings for a product of 2 to 64 rows: strips and splits enough for every multiprocessor, and a pipeline as deep
    as fits into its memory, or (7B shapes of few rows) so shallow that the next kernel's programs fit beside it.
    """
    if num_rows <= _MAX_ROWS_OF_AN_OPERAND and _is_of_measured_width(num_outputs, num_inputs):
        return _operand_config(num_outputs, gated=gated)
    many_rows = num_rows > 32
    if gated and num_outputs >= _FEED_FORWARD:
        if many_rows:
            return RowsConfig(strip=64, span=64, splits=1, num_stages=8, ahead=128, rotate=True)
        return RowsConfig(strip=32, span=256, splits=1, num_stages=3)
    if num_inputs >= _FEED_FORWARD and not gated:
        if many_rows:
            return RowsConfig(strip=64, span=128, splits=2)
        return RowsConfig(strip=64, span=256, splits=4, num_stages=3)
    span = 128 if many_rows or (gated and num_rows > 16) else 256
    wanted = 64 if gated else 128
    splits = 1
    while splits < 4 and -(-num_outputs // 32) * splits < wanted and num_inputs >= 2 * splits * span:
        splits *= 2
    tile_bytes = 2 * span * (32 * (2 if gated else 1) + max(16, num_rows))
    return RowsConfig(
        strip=32, span=span, splits=splits, num_stages=5 if 5 * tile_bytes <= _SHARED_BYTES else 3
    )


def _is_of_measured_width(num_outputs: int, num_inputs: int) -> bool:
    """Whether a weight is of a model of such a width: the narrower side of each of its weights. Some of wider models are as
    narrow (o where all heads together are), which were not measured.
    """
    return _MIN_MODEL_WIDTH <= min(num_outputs, num_inputs) <= _MAX_MODEL_WIDTH


def _operand_config(num_outputs: int, *, gated: bool) -> RowsConfig:
    """Settings for up to 16 rows of a model of a measured width. Where strips are about as many as multiprocessors, a program
    takes all of one's memory: of smaller ones two land on a multiprocessor that the kernel before has left, and another has none
    (128 on 67, o in 12.8 us instead of 10.7).
    """
    if gated:
        return RowsConfig(strip=32, span=256, splits=1, num_stages=3, ahead=128, rotate=True)
    if num_outputs >= _VOCABULARY:
        return RowsConfig(strip=64, span=256, splits=1, num_stages=3, rotate=True)
    if num_outputs <= 32 * _MULTIPROCESSORS:
        return RowsConfig(strip=32, span=512, splits=1, shares=4)
    return RowsConfig(strip=16, span=256, splits=1, shares=4)


@dataclass(frozen=True, kw_only=True)
class HeldConfig:
    """How a product is cut whose weights are held before its input is there: outputs per program, inputs of a load (a power
    of two, at least 16 for each warp) and rows per program.
    """

    strip: int
    chunk: int
    rows: int = 16
    num_warps: int = 8


_HELD_ELEMENTS = 64 << 10
"""Of weights, in half of a multiprocessor's registers."""
_HELD_PROGRAMS = 128
_MAX_HELD_STRIP = 64
_MIN_HELD_CHUNK, _MAX_HELD_CHUNK = 128, 2048
_MAX_HELD_INPUTS = 3072
"""Of 16 rows, which a program's shared memory holds whole (96 KB)."""


def held_config(num_rows: int, num_outputs: int, num_inputs: int) -> HeldConfig | None:
    """Settings for a product of 2 to 64 rows by a small weight, without gates, that is faster with it held, or None: about a
    program for each multiprocessor, each for 16 rows. From 17 rows on products of many outputs are faster by `tiles_hopper`.

    With gates by `tiles_hopper` and norms folded in, a layer of the 0.6B shape with attention over 600 tokens takes 29.0 us
    instead of 38.3 at 16 rows, 40.0 instead of 49.5 at 32 and about 61.5 instead of 65.3 at 64. At 2 and 8 rows it takes 21.3
    instead of 24.1 and 25.4 instead of 28.6 (all in one launch) with qkv by tiles too and more stages for gates.
    """
    chunk = min(num_inputs & -num_inputs, _MAX_HELD_CHUNK)
    groups = -(-num_rows // 16)
    if chunk < _MIN_HELD_CHUNK or num_inputs > _MAX_HELD_INPUTS or num_rows > _MAX_FEW_ROWS:
        return None
    if num_outputs * num_inputs > _SMALL_WEIGHT or (groups > 1 and num_outputs >= _OUTPUTS_OF_ENOUGH_TILES):
        return None
    strip = max(8, 1 << (-(-num_outputs * groups // _HELD_PROGRAMS) - 1).bit_length())
    if strip > _MAX_HELD_STRIP or strip * num_inputs > _HELD_ELEMENTS:
        return None
    return HeldConfig(strip=strip, chunk=chunk)


_MAX_TILE_ROWS = 256
_OUTPUTS_OF_ENOUGH_TILES = 4096
"""As queries, keys and values of a 0.6B shape have together: 64 tiles of all rows take less in than more of fewer rows."""
_MAX_DEEP_GATED_TILE, _MAX_GATED_TILE, _MAX_PLAIN_TILE = 144, 192, 96
_STAGES_BESIDE_FEW, _STAGES_BESIDE = 5, 4
"""Stages of 128 inputs that queries, keys and values take at 33 to 64 rows, and at more. A program or two of decode
attention, 48 KB each, fit beside them, and ask for their first pages before the product has ended: a layer with attention over
the lengths that workload A has at so many rows takes 3.6 us less at 48 rows (of 93), 0.9 at 64, 1.1 at 96, 4.0 at 112, 0.9 at
128, 0.7 at 176 and 0.5 at 192. At 32 rows it takes 0.8 us more; from 208 on no more than four fit."""


@dataclass(frozen=True, kw_only=True)
class TilesConfig:
    """How a product of some hundred rows is cut: weight rows of a tile (64 or 128) and its rows, a multiple of 16."""

    outs: int
    rows: int
    unroll: bool
    """Whether the steps are written out, with memory of its own for each stage. o and down gain 0.3 to 0.5 us of a layer by their
    memory, and more by their 16 and 24 steps; 8 steps of qkv lose 0.2 to 0.8, of gates up to 192 rows 0.6 to 1.8: all four would be
    124 KB of code, and it seems that a multiprocessor keeps less from launch to launch.
    """
    width: int = 128
    """Inputs of a step, 64 or 128. Barriers and addresses take a step as long as its copies where these are small."""
    num_stages: int | None = None
    """None: as many as fit into the memory of a multiprocessor, which then has one program at a time."""


def suits_tiles(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> bool:
    """Whether a product that is not for `held_config` is faster by `tiles_hopper` than by the library, or by `suits_few_rows`.

    A layer of the 0.6B shape with its norms takes 22.3 us instead of 32.8 at 96 rows, 24.6 instead of 34.6 at 144, 29.0
    instead of 36.6 at 256, as the next product's weights are copied while this one ends. Large weights gain nothing at many
    rows: a layer of the 8B shape takes 145 us either way at 144 rows, and 211 instead of 191 at 224, since tiles that are enough
    for every multiprocessor read rows and weights too often (down at 144 rows 880 MB, 59 us of what multiprocessors take in).
    """
    if num_outputs * num_inputs * (2 if gated else 1) <= _SMALL_WEIGHT:
        return num_rows <= _MAX_TILE_ROWS
    if num_outputs >= _VOCABULARY or not _is_of_measured_width(num_outputs, num_inputs):
        return False
    return _suits_wide_tiles(num_rows, num_outputs, num_inputs)


def _suits_wide_tiles(num_rows: int, num_outputs: int, num_inputs: int) -> bool:
    """The same for the weights of a layer of a measured width. Up to 16 rows those that narrow or keep the width are faster by
    `rows` (o 0.2 to 1.4 us), from 33 on down alone.
    """
    if num_rows <= _MAX_ROWS_OF_AN_OPERAND:
        return num_outputs > num_inputs
    return num_rows <= 32 or (num_rows <= _MAX_FEW_ROWS and num_inputs < _FEED_FORWARD)


def tiles_config(num_rows: int, num_outputs: int, num_inputs: int, *, gated: bool) -> TilesConfig:
    """Settings for a product of up to 256 rows: few bytes for each multiprocessor, since it takes in 112 of them a
    nanosecond, however few others do; hence programs for all of them, but no second one that starts late.
    """
    whole = -(-num_rows // 16) * 16
    half = -(-num_rows // 32) * 16
    if num_outputs * num_inputs * (2 if gated else 1) > _SMALL_WEIGHT:
        return _wide_tiles_config(num_rows, gated=gated)
    if num_rows <= _MAX_FEW_ROWS:
        if gated:
            # With six stages the programs of the product before fit beside it; at 17 to 32 rows that was not measured.
            return TilesConfig(
                outs=64, rows=whole, unroll=False, num_stages=None if 16 < num_rows <= 32 else 6
            )
        beside = _STAGES_BESIDE_FEW if num_rows > 32 and num_outputs >= _OUTPUTS_OF_ENOUGH_TILES else None
        return TilesConfig(outs=64, rows=32, unroll=True, num_stages=beside)
    if gated:
        if whole <= _MAX_DEEP_GATED_TILE:
            return TilesConfig(outs=64, rows=whole, unroll=False)
        # Steps of 128 inputs leave room for three stages, between which a product waits for its copies.
        if whole <= _MAX_GATED_TILE:
            return TilesConfig(outs=64, rows=whole, unroll=False, width=64)
        return TilesConfig(outs=128, rows=half, unroll=True, width=64)
    if num_outputs >= _OUTPUTS_OF_ENOUGH_TILES:
        rows = whole if whole <= _MAX_PLAIN_TILE else half
        return TilesConfig(outs=64, rows=rows, unroll=False, num_stages=_STAGES_BESIDE)
    return TilesConfig(outs=64, rows=32, unroll=True)


def _wide_tiles_config(num_rows: int, *, gated: bool) -> TilesConfig:
    """Settings for 2 to 64 rows of a layer of a measured width: all rows in a tile, so that weights are read once. With four
    stages two programs of gates fit side by side, which gains up to 2 us of a layer at 16 rows and loses 6 at 32.
    """
    rows = 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64
    return TilesConfig(outs=64, rows=rows, unroll=False, num_stages=4 if gated and rows == 16 else None)
