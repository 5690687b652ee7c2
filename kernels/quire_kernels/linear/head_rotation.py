"""How a product that makes heads leaves its tiles: queries and keys rotated, keys and values in the paged cache.

Truth: `rotary/reference.py`, of a product that has been rounded. A tile has two heads of 128; of both, the same 32 elements
of either half are rounded into shared memory and read back as whole runs, so that each cosine and sine is loaded once. Rows
may be multiplied by factors before; where these or the product come from is not known here.
"""

# pyright: reportAssignmentType=false

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl

HEAD_DIM = 128
_HEAD = gl.constexpr(HEAD_DIM)
_HALF = gl.constexpr(HEAD_DIM // 2)
_RUN = gl.constexpr(HEAD_DIM // 4)


@gluon.constexpr_function
def _product_layout(columns):
    """How a warpgroup holds a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def _run_layout():
    """How a warpgroup holds runs of rows, 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [8, 4], [4, 1], [1, 0])


@gluon.jit
def allocate_runs(dtype: gl.constexpr, GROUPS: gl.constexpr, ROWS: gl.constexpr):
    """Return room for the runs of a warpgroup's rows: first and second half of one head, then of the other."""
    # Each by itself, else every store would wait for the one before it.
    LAYOUT: gl.constexpr = gl.SwizzledSharedLayout(8, 2, 4, [1, 0])
    a = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, _RUN], LAYOUT)
    b = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, _RUN], LAYOUT)
    c = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, _RUN], LAYOUT)
    d = gl.allocate_shared_memory(dtype, [GROUPS, ROWS, _RUN], LAYOUT)
    return a, b, c, d


@gluon.jit
def split_runs(total):
    """Return two halves of a product of two heads, each with a run of either half of both."""
    ROWS: gl.constexpr = total.shape[0]
    LAYOUT: gl.constexpr = _product_layout(_HEAD)
    left, right = total.reshape([ROWS, 4, 2, _RUN]).permute([0, 1, 3, 2]).split()
    return (
        gl.convert_layout(left.reshape([ROWS, _HEAD]), LAYOUT),
        gl.convert_layout(right.reshape([ROWS, _HEAD]), LAYOUT),
    )


@gluon.jit
def find_rows(places, row, num_rows, ROWS: gl.constexpr):
    """Return where tokens stand, their places in the cache, and whether they exist."""
    rows = row + gl.arange(0, ROWS, gl.SliceLayout(1, _run_layout()))
    there = rows < num_rows
    position = gl.load(places[1] + rows, mask=there, other=0).to(gl.int32)
    slot = gl.load(places[2] + rows, mask=there, other=0).to(gl.int32)
    return rows, there, position, slot


@gluon.jit
def leave_heads(
    runs, out, places, left, right, factor, found, strip,
    GROUP: gl.constexpr, NORM: gl.constexpr, NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Store what `split_runs` returned of a tile."""
    for run in gl.static_range(2):
        cos, sin = _load_angles(places, found, strip, run, NUM_HEADS, NUM_KV_HEADS)
        if run == 0:
            _stage(runs, left, factor, GROUP, NORM)
        else:
            _stage(runs, right, factor, GROUP, NORM)
        for side in gl.static_range(2):
            _leave_runs(
                runs, out, places, cos, sin, found, 2 * strip + side, side, run, GROUP, NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE
            )  # fmt: skip


@gluon.jit
def _load_angles(
    places, found, strip, RUN: gl.constexpr, NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr
):
    """Return the cosines and sines of a run, where a head of the strip turns."""
    _rows, there, position, _slot = found
    column = RUN * _RUN + gl.arange(0, _RUN, gl.SliceLayout(0, _run_layout()))
    turns = there & (2 * strip < NUM_HEADS + NUM_KV_HEADS)
    place = places[0] + (position * _HEAD)[:, None] + column[None, :]
    return gl.load(place, mask=turns[:, None], other=0.0), gl.load(
        place + _HALF, mask=turns[:, None], other=0.0
    )


@gluon.constexpr_function
def _scale_instructions(dtype):
    """Of two values and the factors of both rows."""
    return """{
        .reg .f32 first, second;
        mul.f32 first, $1, $3;
        mul.f32 second, $2, $4;
        cvt.rn.TYPE.f32 $0, second, first;
        }""".replace("TYPE", "bf16x2" if dtype == gl.bfloat16 else "f16x2")


@gluon.jit
def _scale(values, factor, dtype: gl.constexpr):
    """Return values times the factors of their rows, rounded. In one piece, else products wait in registers that are not
    there to be rounded.
    """
    return gl.inline_asm_elementwise(
        _scale_instructions(dtype),
        "=r,f,f,f,f",
        [values, factor[:, None]],
        dtype=dtype.value,
        is_pure=True,
        pack=2,
    )


@gluon.jit
def _stage(runs, values, factor, GROUP: gl.constexpr, NORM: gl.constexpr):
    """Round runs into shared memory."""
    ROWS: gl.constexpr = values.shape[0]
    LAYOUT: gl.constexpr = _product_layout(_RUN)
    if NORM:
        values = _scale(values, factor, runs[0].dtype)
    else:
        values = values.to(runs[0].dtype)
    one, other = values.reshape([ROWS, 2, 2 * _RUN]).permute([0, 2, 1]).split()
    one_first, one_second = one.reshape([ROWS, 2, _RUN]).permute([0, 2, 1]).split()
    other_first, other_second = other.reshape([ROWS, 2, _RUN]).permute([0, 2, 1]).split()
    runs[0].index(GROUP).store(gl.convert_layout(one_first, LAYOUT))
    runs[1].index(GROUP).store(gl.convert_layout(one_second, LAYOUT))
    runs[2].index(GROUP).store(gl.convert_layout(other_first, LAYOUT))
    runs[3].index(GROUP).store(gl.convert_layout(other_second, LAYOUT))


@gluon.jit
def _leave_runs(
    runs, out, places, cos, sin, found, head, SIDE: gl.constexpr, RUN: gl.constexpr,
    GROUP: gl.constexpr, NUM_HEADS: gl.constexpr, NUM_KV_HEADS: gl.constexpr, BLOCK_SIZE: gl.constexpr,
):  # fmt: skip
    """Rotate the runs of one head, and store them where it goes."""
    LAYOUT: gl.constexpr = _run_layout()
    rows, there, _position, slot = found
    block, offset = (slot // BLOCK_SIZE).to(gl.int64), slot % BLOCK_SIZE
    if head < NUM_HEADS:
        base = out
        place = rows.to(gl.int64) * (NUM_HEADS * _HEAD) + head * _HEAD
    else:
        if head < NUM_HEADS + NUM_KV_HEADS:
            base = places[3]
            place = block * places[5] + offset * places[6] + (head - NUM_HEADS) * places[7]
        else:
            base = places[4]
            place = block * places[8] + offset * places[9] + (head - NUM_HEADS - NUM_KV_HEADS) * places[10]
    column = RUN * _RUN + gl.arange(0, _RUN, gl.SliceLayout(0, LAYOUT))
    target = base + place[:, None] + column[None, :]
    first = runs[2 * SIDE].index(GROUP).load(LAYOUT)
    second = runs[2 * SIDE + 1].index(GROUP).load(LAYOUT)
    if head < NUM_HEADS + NUM_KV_HEADS:
        first, second = _turn(first, second, cos, sin)
    gl.store(target, first, mask=there[:, None])
    gl.store(target + _HALF, second, mask=there[:, None])


@gluon.jit
def _turn(first, second, cos, sin):
    """Return halves rotated, rounded once."""
    if first.dtype == gl.bfloat16:
        # Two at a time: conversions one by one take eight times as long. The product that is rounded before the sum is that of
        # the second half both times, as the compiler has it in `rotary/head_tile.py`.
        turned_first, turned_second = gl.inline_asm_elementwise(
            """{
            .reg .f32 first_0, first_1, second_0, second_1, cross_0, cross_1;
            shl.b32 first_0, $2, 16;
            and.b32 first_1, $2, 0xffff0000;
            shl.b32 second_0, $3, 16;
            and.b32 second_1, $3, 0xffff0000;
            mul.rn.f32 cross_0, second_0, $6;
            mul.rn.f32 cross_1, second_1, $7;
            neg.f32 cross_0, cross_0;
            neg.f32 cross_1, cross_1;
            fma.rn.f32 cross_0, first_0, $4, cross_0;
            fma.rn.f32 cross_1, first_1, $5, cross_1;
            cvt.rn.bf16x2.f32 $0, cross_1, cross_0;
            mul.rn.f32 cross_0, second_0, $4;
            mul.rn.f32 cross_1, second_1, $5;
            fma.rn.f32 cross_0, first_0, $6, cross_0;
            fma.rn.f32 cross_1, first_1, $7, cross_1;
            cvt.rn.bf16x2.f32 $1, cross_1, cross_0;
            }""",
            "=&r,=&r,r,r,f,f,f,f",
            [first, second, cos, sin],
            dtype=(gl.bfloat16, gl.bfloat16),
            is_pure=True,
            pack=2,
        )
    else:
        wide_first, wide_second = first.to(gl.float32), second.to(gl.float32)
        turned_first = (wide_first * cos - wide_second * sin).to(first.dtype)
        turned_second = (wide_second * cos + wide_first * sin).to(first.dtype)
    return turned_first, turned_second
