"""Tuned launch settings of the attention kernels, by GPU generation and shape class. Data and its lookup
only.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How a decode launch is cut: keys per tile, splits of each sequence, fewest keys a split is worth.

    With ``by_page`` it is the kernel that copies whole pages: one warp per program, tiles of 16 or 32 keys.
    """

    tile: int
    num_splits: int
    min_split: int
    num_warps: int
    num_stages: int
    by_page: bool = False


@dataclass(frozen=True, kw_only=True)
class PrefillConfig:
    """How a prefill launch is cut: query rows (tokens times heads of a group) and keys per tile.

    Keys are split where a step has fewer tiles than ``num_programs`` (per key head, that run at once), into splits of
    ``min_split`` keys or more. ``hopper`` settings are those of `prefill_hopper`, which has a warpgroup for 64 rows and
    gives each query token a power of two of them; the others those of `prefill`. Sequences with fewer than ``shortest``
    query tokens are left to decode attention.
    """

    rows: int
    tile: int
    num_warps: int
    num_stages: int
    num_programs: int = 1
    min_split: int = 512
    shortest: int = 2
    hopper: bool = False
    resident_programs: int = 0  # of `prefill_hopper`, over all key heads


# Up to how many programs (sequence, key head) a launch splits sequences, and into how many parts. Measured
# on one H200 within whole steps: from 768 programs on, one part wins even for lengths that differ by a factor of
# seven; cutting all sequences into equal streams of tiles (Stream-K), or merging the parts in the program that comes
# last, was at best as fast at every shape.
_SPLITS_BY_PROGRAMS = ((16, 64), (64, 16), (256, 8), (512, 4), (767, 2))
_MIN_SPLIT = 128  # keys

_MANY_PROGRAMS = 2560
"""From so many on small tiles win: more programs are resident, and their unequal ends matter less."""

_DECODE_TILES = {
    # capability major: (tile, num_warps, num_stages) of few and of many programs
    9: ((64, 4, 3), (32, 2, 3)),
}
_DECODE_FALLBACK = ((64, 4, 2), (64, 4, 2))

# Of the kernel that copies pages, measured on one H200: us a layer as one of a graph of 28, against those of the kernel
# above, lengths uniform between 100 and 2048 and longest first; 16 query and 8 key heads of 128.
#   1000 x 300: 286 (294)   256 x 617: 152 (163)   256 uneven: 266 (282)   140 uneven: 135 (153)   64 uneven: 71 (78)
#   32 uneven: 34 (40)   16 x 1500: 29.5 (33)   8 x 1000: 12.2 (14)   1 x 1000: 6.6 (8.1)
# With 32 query heads 256 x 400: 102 (112)   64 x 600: 45 (52)   16 x 8192: 130 (136)   1 x 32768: 38 (41).
_PAGE_SPLITS_BY_PROGRAMS = ((16, 64), (32, 16), (128, 8), (256, 4), (767, 2))
# From how many programs on: tile, stages. Six or eight programs to a multiprocessor are best where many follow one
# another; with fewer of them a program must have more in flight, and a short queue of long ones evens the ends out. Three
# stages instead of two gain 2.3 us of a layer of 182 at 256 uneven sequences, 0.6 of 196 at 216, 1.8 of 194 at 186 (16 query
# and 8 key heads). Where all are equally long they gain nothing, and lose 1.3 of 297 at 256 x 400 with 32 query heads.
_PAGE_TILES = ((4096, 16, 3), (2049, 32, 2), (0, 32, 3))

_PREFILL = {
    # (capability major, head_dim up to): config
    # Measured on one H200, 8 key heads of 128: 4 prompts of 2,048 in 413 us, 256 tokens on 3,840 cached in 52 us, 200
    # prompts of 10 in 33 us; rows=128 with 8 warps takes 406, 51 and 59. Two programs fit a multiprocessor.
    (9, 128): PrefillConfig(rows=64, tile=64, num_warps=4, num_stages=3),
    # As compiled, not timed: four warps spill registers in the loop over the keys, three stages exceed shared memory.
    (9, 256): PrefillConfig(rows=64, tile=64, num_warps=8, num_stages=2),
}
_PREFILL_FALLBACK = PrefillConfig(rows=64, tile=32, num_warps=4, num_stages=2)
_PREFILL_HOPPER = PrefillConfig(rows=128, tile=64, num_warps=4, num_stages=4, hopper=True)
# Up to so many sequences the prefill kernel attends to those of one token too, which saves two launches. Measured on one
# H200, 32 query and 8 key heads, us a layer against decode before it: a prompt of 256 tokens in a table of 32 rows 12.4
# (16.6), a chunk of 352 beside 32 sequences of 400 tokens 32.1 (34.7), with 700 tokens before the chunk 49.5 (59.5); but
# 2,048 tokens of prompts beside 200 sequences 130 (120).
_FEW_SEQUENCES = 64
# Warps of prefill programs that a multiprocessor holds at once, as registers allow.
_PREFILL_WARPS = 8


def decode_config(
    capability_major: int, num_sequences: int, num_kv_heads: int, max_seq_len: int, *, by_page: bool = False
) -> DecodeConfig:
    """Return the settings for a batch; a pure function of shapes, so every rank and every replay agrees.

    ``by_page`` asks for those of the kernel that copies pages, which takes fewer kinds of tensors.
    """
    programs = num_sequences * num_kv_heads
    if by_page:
        tile, num_stages = next((tile, stages) for least, tile, stages in _PAGE_TILES if programs >= least)
        num_warps, splits_by_programs = 1, _PAGE_SPLITS_BY_PROGRAMS
    else:
        tiles = _DECODE_TILES.get(capability_major, _DECODE_FALLBACK)
        tile, num_warps, num_stages = tiles[programs >= _MANY_PROGRAMS]
        splits_by_programs = _SPLITS_BY_PROGRAMS
    min_split = max(_MIN_SPLIT, tile)
    return DecodeConfig(
        tile=tile,
        num_splits=_num_splits(splits_by_programs, programs, -(-max_seq_len // min_split)),
        min_split=min_split,
        num_warps=num_warps,
        num_stages=num_stages,
        by_page=by_page,
    )


def _num_splits(splits_by_programs: tuple[tuple[int, int], ...], programs: int, useful: int) -> int:
    """Splits of each sequence, a power of two: no more than the table says, and less than twice the useful ones."""
    num_splits = next((splits for limit, splits in splits_by_programs if programs <= limit), 1)
    while num_splits > 1 and num_splits // 2 >= useful:
        num_splits //= 2
    return num_splits


def prefill_hopper_config(num_multiprocessors: int, num_kv_heads: int, num_sequences: int) -> PrefillConfig:
    """Return the settings of `prefill_hopper`, which fills a multiprocessor with one program."""
    return replace(
        _PREFILL_HOPPER,
        shortest=1 if num_sequences <= _FEW_SEQUENCES else 2,
        num_programs=max(1, num_multiprocessors // num_kv_heads),
        resident_programs=num_multiprocessors,
    )


def prefill_config(
    capability_major: int, num_multiprocessors: int, num_kv_heads: int, head_dim: int, element_size: int
) -> PrefillConfig:
    """Return the settings of `prefill` for head dimension and element size (bytes); wide elements take the small tiles."""
    config = _PREFILL_FALLBACK
    if element_size <= 2:
        config = next(
            (
                config
                for (major, largest_head_dim), config in _PREFILL.items()
                if major == capability_major and head_dim <= largest_head_dim
            ),
            config,
        )
    programs = _PREFILL_WARPS // config.num_warps * num_multiprocessors // num_kv_heads
    return replace(config, num_programs=max(1, programs))
