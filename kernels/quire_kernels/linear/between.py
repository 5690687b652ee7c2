"""What lies between two attentions of a decode step of few rows, in one launch (Gluon): the product that joins the heads,
the feed-forward block, and the next layer's product into queries, keys and values, with norms and residual. Truth:
`linear/reference.py`.

As launches of their own, such small products take four times as long as reading their weights. Here every multiprocessor
holds one program, which takes a strip of outputs of each product, and all programs meet between products; so all must be on
the device at once. Weights depend on nothing: those of the next product are asked for, into the very registers from which
the tensor cores take them, before the programs meet, and those after it are brought to the second-level cache.

A warp takes a share of the inputs for all outputs of its program, so that no row is read twice by a program; the shares are
added up through shared memory, in their order.
"""

# Gluon's types know neither its compile-time values nor its launches.
# pyright: reportAssignmentType=false, reportIndexIssue=false

from functools import cache

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mma_v2

from quire_kernels import overlap
from quire_kernels.linear.tuning import BetweenConfig

_NUM_WARPS = 8
_ROWS = 16  # of a tensor-core product
_MAX_POLLS = 1 << 24  # some ten seconds

_finish_launching = gluon.jit(overlap.finish_launching.fn)
_wait_for_inputs = gluon.jit(overlap.wait_for_inputs.fn)
# Its name in Triton 3.6, and from 3.7 on.
_synchronize = getattr(gl, "thread_barrier", None) or gl.barrier

_ARRIVE = gl.constexpr(
    """
    {
    .reg .pred other;
    .reg .u32 thread;
    mov.u32 $0, 0;
    mov.u32 thread, %tid.x;
    setp.ne.u32 other, thread, 0;
    @!other red.release.gpu.global.add.u32 [$1], 1;
    }
    """
)
# A program that waits for ever ends the launch with an error.
_AWAIT = gl.constexpr(
    """
    {
    .reg .pred other, complete, patient;
    .reg .u32 thread, seen, polls;
    mov.u32 $0, 0;
    mov.u32 thread, %tid.x;
    setp.ne.u32 other, thread, 0;
    @other bra DONE;
    mov.u32 polls, 0;
    LOOK:
    ld.acquire.gpu.global.u32 seen, [$1];
    setp.ge.u32 complete, seen, $2;
    @complete bra DONE;
    add.u32 polls, polls, 1;
    setp.lt.u32 patient, polls, $3;
    @patient bra LOOK;
    trap;
    DONE:
    }
    """
)


@gluon.jit
def _arrive(meeting):
    """Says that this program has come, and that what it wrote before can be read."""
    _synchronize()
    gl.inline_asm_elementwise(_ARRIVE, "=r,l", [meeting], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def _await(meeting, POLLS: gl.constexpr):
    """Waits until every program has come; one thread looks for all."""
    gl.inline_asm_elementwise(
        _AWAIT, "=r,l,r,r", [meeting, gl.num_programs(0), POLLS], dtype=gl.int32, is_pure=False, pack=1
    )
    _synchronize()


@gluon.jit
def _prefetch(weight, first, LENGTH: gl.constexpr):
    """Brings LENGTH elements from `first` on to the second-level cache."""
    LINES: gl.constexpr = LENGTH // 64
    PADDED: gl.constexpr = triton.next_power_of_2(LINES)
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [gl.num_warps()], [0])
    line = gl.minimum(gl.arange(0, PADDED, layout), LINES - 1)
    gl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [weight + first + line * 64],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def _weights(weight, first, TILES: gl.constexpr, K: gl.constexpr, SPAN: gl.constexpr, RIGHT: gl.constexpr):
    """Tiles of outputs from `first` on, each in chunks of inputs: [warps, SPAN, 8]."""
    WARPS: gl.constexpr = gl.num_warps()
    share = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, RIGHT)))[:, None, None]
    place = gl.arange(0, SPAN, gl.SliceLayout(0, gl.SliceLayout(2, RIGHT)))[None, :, None]
    output = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(1, RIGHT)))[None, None, :]
    start = weight + first.to(gl.int64) * K + (share * SPAN + place + output * K)
    held = ()
    for tile in gl.static_range(TILES):
        for chunk in gl.static_range(K // (SPAN * WARPS)):
            held = held + (gl.load(start + (tile * 8 * K + chunk * SPAN * WARPS), cache_modifier=".cg"),)  # noqa: RUF005
    return held


@gluon.jit
def _inputs(x, num_rows, K: gl.constexpr, ROWS: gl.constexpr, SPAN: gl.constexpr, LEFT: gl.constexpr):
    """The rows of x in chunks [warps, ROWS, SPAN]; not by the first-level cache, which knows nothing of other programs."""
    WARPS: gl.constexpr = gl.num_warps()
    share = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, LEFT)))[:, None, None]
    row = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LEFT)))[None, :, None]
    place = gl.arange(0, SPAN, gl.SliceLayout(0, gl.SliceLayout(1, LEFT)))[None, None, :]
    start = x + (row * K + share * SPAN + place)
    held = ()
    for chunk in gl.static_range(K // (SPAN * WARPS)):
        held = held + (  # noqa: RUF005
            gl.load(start + chunk * SPAN * WARPS, mask=row < num_rows, other=0.0, cache_modifier=".cg"),
        )
    return held


@gluon.jit
def _scales(norm, K: gl.constexpr, SPAN: gl.constexpr, LEFT: gl.constexpr):
    """The weights of a norm in chunks [warps, 1, SPAN]."""
    WARPS: gl.constexpr = gl.num_warps()
    share = gl.arange(0, WARPS, gl.SliceLayout(1, gl.SliceLayout(2, LEFT)))[:, None, None]
    place = gl.arange(0, SPAN, gl.SliceLayout(0, gl.SliceLayout(1, LEFT)))[None, None, :]
    held = ()
    for chunk in gl.static_range(K // (SPAN * WARPS)):
        held = held + (gl.load(norm + chunk * SPAN * WARPS + share * SPAN + place),)  # noqa: RUF005
    return held


@gluon.jit
def _normed(held, scales, eps, K: gl.constexpr, CHUNKS: gl.constexpr):
    """As `norm/rows.py`, on rows that lie as the tensor cores take them."""
    values = held[0].to(gl.float32)
    squares = gl.sum(values * values, axis=2)
    for chunk in gl.static_range(1, CHUNKS):
        values = held[chunk].to(gl.float32)
        squares += gl.sum(values * values, axis=2)
    inverse_rms = gl.rsqrt(gl.sum(squares, axis=0) / K + eps)
    inverse_rms = gl.expand_dims(gl.expand_dims(inverse_rms, 0), 2)
    normed = ()
    for chunk in gl.static_range(CHUNKS):
        result = held[chunk].to(gl.float32) * inverse_rms * scales[chunk].to(gl.float32)
        normed = normed + (result.to(held[chunk].dtype),)  # noqa: RUF005
    return normed


@gluon.jit
def _multiply(
    columns,
    weights,
    parts,
    FIRST: gl.constexpr,
    TILES: gl.constexpr,
    CHUNKS: gl.constexpr,
    ROWS: gl.constexpr,
    PRODUCT: gl.constexpr,
):
    """Leaves the warps' parts of each tile of outputs in shared memory."""
    WARPS: gl.constexpr = gl.num_warps()
    for tile in gl.static_range(TILES):
        zeros = gl.zeros([WARPS, ROWS, 8], gl.float32, PRODUCT)
        total = mma_v2(columns[0], weights[tile * CHUNKS], zeros)
        for chunk in gl.static_range(1, CHUNKS):
            total += mma_v2(columns[chunk], weights[tile * CHUNKS + chunk], zeros)  # chains of their own
        parts.index(FIRST + tile).store(total)


@gluon.jit(do_not_specialize=["num_rows"])
def _between_attentions_kernel(
    attended,  # [num_rows, HEADS]
    residual,  # [num_rows, HIDDEN], read and written
    gated,  # [num_rows, INNER], written and read
    out,  # [num_rows, OUT]
    o,  # [HIDDEN, HEADS]
    post_norm,  # [HIDDEN]
    gate_up,  # [2 INNER, HIDDEN]
    down,  # [HIDDEN, INNER]
    input_norm,  # [HIDDEN]
    qkv,  # [OUT, HIDDEN]
    qkv_bias,  # [OUT]
    meetings,  # [3], each on a line of its own; the last is reset by the next launch
    num_rows,
    eps,
    HEADS: gl.constexpr,
    HIDDEN: gl.constexpr,
    INNER: gl.constexpr,
    OUT: gl.constexpr,
    ROWS: gl.constexpr,
    PROGRAMS: gl.constexpr,
    SPAN: gl.constexpr,
    HAS_BIAS: gl.constexpr,
    POLLS: gl.constexpr,
    OVERLAP: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    PRODUCT: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [WARPS, 1, 1], [1, 16, 8])
    LEFT: gl.constexpr = gl.DotOperandLayout(0, PRODUCT, 8)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, PRODUCT, 8)
    SUM: gl.constexpr = gl.BlockedLayout([WARPS, 1, 1], [1, 4, 8], [1, WARPS, 1], [2, 1, 0])
    STEP: gl.constexpr = SPAN * WARPS
    TILES: gl.constexpr = HIDDEN // (8 * PROGRAMS)
    INNER_TILES: gl.constexpr = INNER // (8 * PROGRAMS)
    OUT_TILES: gl.constexpr = OUT // (8 * PROGRAMS)
    MOST_TILES: gl.constexpr = max(2 * INNER_TILES, OUT_TILES, TILES)
    LINE: gl.constexpr = 32
    DTYPE: gl.constexpr = residual.dtype.element_ty
    parts = gl.allocate_shared_memory(
        gl.float32, [MOST_TILES, WARPS, ROWS, 8], gl.SwizzledSharedLayout(1, 1, 1, [2, 1, 0])
    )
    program = gl.program_id(0)
    first = program * (8 * TILES)
    first_inner = program * (8 * INNER_TILES)
    first_out = program * (8 * OUT_TILES)
    row = gl.arange(0, ROWS, gl.SliceLayout(1, gl.SliceLayout(0, SUM)))[:, None]
    column = gl.arange(0, 8, gl.SliceLayout(0, gl.SliceLayout(0, SUM)))[None, :]
    live = row < num_rows
    own = row * HIDDEN + first + column
    own_inner = row * INNER + first_inner + column

    joining = _weights(o, first, TILES, HEADS, SPAN, RIGHT)
    gates = _weights(gate_up, first_inner, INNER_TILES, HIDDEN, SPAN, RIGHT)
    ups = _weights(gate_up, INNER + first_inner, INNER_TILES, HIDDEN, SPAN, RIGHT)
    _prefetch(down, first * INNER, 8 * TILES * INNER)
    _prefetch(post_norm, 0, HIDDEN)
    _prefetch(input_norm, 0, HIDDEN)
    _prefetch(qkv, first_out * HIDDEN, 8 * OUT_TILES * HIDDEN)
    _wait_for_inputs(OVERLAP)
    if program == 0:
        gl.store(meetings + 2 * LINE, 0)

    old = ()
    for tile in gl.static_range(TILES):
        old = old + (gl.load(residual + own + 8 * tile, mask=live, other=0.0),)  # noqa: RUF005
    columns = _inputs(attended, num_rows, HEADS, ROWS, SPAN, LEFT)
    _multiply(columns, joining, parts, 0, TILES, HEADS // STEP, ROWS, PRODUCT)
    sums = ()
    for tile in gl.static_range(TILES):
        rounded = (gl.sum(parts.index(tile).load(SUM), axis=0) + old[tile].to(gl.float32)).to(DTYPE)
        gl.store(residual + own + 8 * tile, rounded, mask=live)
        sums = sums + (rounded,)  # noqa: RUF005
    _arrive(meetings)
    scales = _scales(post_norm, HIDDEN, SPAN, LEFT)
    _await(meetings, POLLS)
    # All programs are there: those of the next kernel cannot take their places.
    _finish_launching(OVERLAP)

    columns = _inputs(residual, num_rows, HIDDEN, ROWS, SPAN, LEFT)
    normed = _normed(columns, scales, eps, HIDDEN, HIDDEN // STEP)
    _multiply(normed, gates, parts, 0, INNER_TILES, HIDDEN // STEP, ROWS, PRODUCT)
    _multiply(normed, ups, parts, INNER_TILES, INNER_TILES, HIDDEN // STEP, ROWS, PRODUCT)
    for tile in gl.static_range(INNER_TILES):
        gate = gl.sum(parts.index(tile).load(SUM), axis=0)
        up = gl.sum(parts.index(INNER_TILES + tile).load(SUM), axis=0)
        result = gate / (1.0 + gl.exp(-gate)) * up
        gl.store(gated + own_inner + 8 * tile, result.to(DTYPE), mask=live)
    _arrive(meetings + LINE)
    leaving = _weights(down, first, TILES, INNER, SPAN, RIGHT)
    _await(meetings + LINE, POLLS)

    columns = _inputs(gated, num_rows, INNER, ROWS, SPAN, LEFT)
    _multiply(columns, leaving, parts, 0, TILES, INNER // STEP, ROWS, PRODUCT)
    for tile in gl.static_range(TILES):
        total = gl.sum(parts.index(tile).load(SUM), axis=0) + sums[tile].to(gl.float32)
        gl.store(residual + own + 8 * tile, total.to(DTYPE), mask=live)
    _arrive(meetings + 2 * LINE)
    scales = _scales(input_norm, HIDDEN, SPAN, LEFT)
    entering = _weights(qkv, first_out, OUT_TILES, HIDDEN, SPAN, RIGHT)
    _await(meetings + 2 * LINE, POLLS)
    if program == 0:
        gl.store(meetings, 0)
        gl.store(meetings + LINE, 0)

    columns = _inputs(residual, num_rows, HIDDEN, ROWS, SPAN, LEFT)
    normed = _normed(columns, scales, eps, HIDDEN, HIDDEN // STEP)
    _multiply(normed, entering, parts, 0, OUT_TILES, HIDDEN // STEP, ROWS, PRODUCT)
    for tile in gl.static_range(OUT_TILES):
        total = gl.sum(parts.index(tile).load(SUM), axis=0)
        output = first_out + 8 * tile + column
        if HAS_BIAS:
            total += gl.load(qkv_bias + output).to(gl.float32)
        gl.store(out + row * OUT + output, total.to(DTYPE), mask=live)


def between_attentions_rows(
    attended: Tensor,
    residual: Tensor,
    *,
    o: Tensor,
    post_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    input_norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
    eps: float,
    config: BetweenConfig,
) -> Tensor:
    """Return the next layer's queries, keys and values ``[T, N]`` of ``attended [T, Q]``, T at most 16; ``residual [T, H]``
    goes on in place.

    Launches on one device must not run at the same time: each could keep the other's programs from being there, and they
    would share the counters by which programs meet. Raises ``ValueError`` on tensors that `misfit` names, and on a
    ``config`` that would leave outputs or inputs over.
    """
    reason = misfit(
        attended,
        residual,
        o=o,
        post_norm=post_norm,
        gate_up=gate_up,
        down=down,
        input_norm=input_norm,
        qkv=qkv,
        qkv_bias=qkv_bias,
    )
    if reason := reason or _misfit_of_config(config, attended, residual, down, qkv):
        raise ValueError(reason)
    num_rows, hidden_size = residual.shape
    intermediate_size = down.shape[1]
    out = torch.empty((num_rows, qkv.shape[0]), dtype=residual.dtype, device=residual.device)
    gated = torch.empty((num_rows, intermediate_size), dtype=residual.dtype, device=residual.device)
    overlaps = overlap.overlaps_launches(residual.device)
    _between_attentions_kernel[(config.num_programs,)](
        attended,
        residual,
        gated,
        out,
        o,
        post_norm,
        gate_up,
        down,
        input_norm,
        qkv,
        qkv if qkv_bias is None else qkv_bias,
        _meetings(residual.device),
        num_rows,
        eps,
        HEADS=attended.shape[1],
        HIDDEN=hidden_size,
        INNER=intermediate_size,
        OUT=qkv.shape[0],
        ROWS=_ROWS,
        PROGRAMS=config.num_programs,
        SPAN=config.span,
        HAS_BIAS=qkv_bias is not None,
        POLLS=_MAX_POLLS,
        OVERLAP=overlaps,
        num_warps=_NUM_WARPS,
        **overlap.launch_options(overlaps),
    )
    return out


def misfit(
    attended: Tensor,
    residual: Tensor,
    *,
    o: Tensor,
    post_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
    input_norm: Tensor,
    qkv: Tensor,
    qkv_bias: Tensor | None,
) -> str | None:
    """Why the kernel does not take these tensors, or None: 16-bit ones of one type, contiguous, whose shapes agree."""
    num_rows, hidden_size = residual.shape
    if residual.dtype not in (torch.bfloat16, torch.float16):
        return f"residual is of {residual.dtype}; it must be of 16 bits"
    if num_rows > _ROWS:
        return f"residual has {num_rows} rows; at most {_ROWS} go in one launch"
    q_size, intermediate_size, num_outputs = attended.shape[-1], down.shape[-1], qkv.shape[0]
    operands = {
        "attended": (attended, (num_rows, q_size)),
        "residual": (residual, (num_rows, hidden_size)),
        "o": (o, (hidden_size, q_size)),
        "post_norm": (post_norm, (hidden_size,)),
        "gate_up": (gate_up, (2 * intermediate_size, hidden_size)),
        "down": (down, (hidden_size, intermediate_size)),
        "input_norm": (input_norm, (hidden_size,)),
        "qkv": (qkv, (num_outputs, hidden_size)),
        "qkv_bias": (qkv_bias, (num_outputs,)),
    }
    for name, (tensor, shape) in operands.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            return f"{name} has shape {tuple(tensor.shape)}; it must be {shape}"
        if tensor.dtype is not residual.dtype:
            return f"{name} is of {tensor.dtype}; it must be of {residual.dtype}, as residual is"
        if not tensor.is_contiguous():
            return f"{name} has strides {tensor.stride()}; it must be contiguous"
    return None


def _misfit_of_config(
    config: BetweenConfig, attended: Tensor, residual: Tensor, down: Tensor, qkv: Tensor
) -> str | None:
    """Why these settings do not cut these tensors into whole tiles for every program and whole chunks for every warp."""
    q_size, hidden_size, intermediate_size = attended.shape[1], residual.shape[1], down.shape[1]
    outputs = {"hidden": hidden_size, "intermediate": intermediate_size, "qkv": qkv.shape[0]}
    for name, size in outputs.items():
        if size == 0 or size % (8 * config.num_programs):
            return f"num_programs is {config.num_programs}; 8 times it must divide the {name} size {size}"
    for name, size in {"q": q_size, "hidden": hidden_size, "intermediate": intermediate_size}.items():
        if size == 0 or size % (_NUM_WARPS * config.span):
            return f"span is {config.span}; {_NUM_WARPS} times it must divide the {name} size {size}"
    return None


@cache
def _meetings(device: torch.device) -> Tensor:
    """Counters of a device, made before anything is captured."""
    return torch.zeros(3 * 32, dtype=torch.int32, device=device)
