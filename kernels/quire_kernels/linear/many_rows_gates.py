"""The activation that joins gates and ups as they leave a product of `many_rows.py`. Truth: `linear/reference.py`.

Written in the machine's terms, two values at a time: what waits at a tile's end waits in registers while the tensor cores are
idle. Knows values and the factors of their rows; no tile, no memory and no order of work.
"""

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl


@gluon.jit
def join_gates(gate, up, dtype: gl.constexpr):
    """Return ``silu(gate) * up``, of both as they would have been stored."""
    if dtype == gl.bfloat16:
        # Conversions one by one, and exponentials that care for the smallest numbers, take twice as long.
        joined = gl.inline_asm_elementwise(
            _gate_instructions(), "=r,f,f,f,f", [gate, up], dtype=gl.bfloat16, is_pure=True, pack=2
        )
    else:
        gate = gate.to(dtype).to(gl.float32)
        joined = (gate * (1 / (1 + gl.exp(-gate))) * up.to(dtype).to(gl.float32)).to(dtype)
    return joined


@gluon.jit
def join_scaled_gates(gate, up, factor, dtype: gl.constexpr):
    """Return ``silu(gate) * up`` of both times the factors of their rows, rounded once."""
    exponent, square = factor * -1.4426950408889634, factor * factor
    return gl.inline_asm_elementwise(
        _scaled_gate_instructions(dtype),
        "=r,f,f,f,f,f,f,f,f",
        [gate, up, exponent[:, None], square[:, None]],
        dtype=dtype.value,
        is_pure=True,
        pack=2,
    )


@gluon.constexpr_function
def _gate_instructions():
    """Of two outputs in bfloat16: gates and ups, which are rounded first."""
    return (
        """{
        .reg .b32 gates, ups;
        .reg .f32 gate_0, gate_1, up_0, up_1, e_0, e_1;
        cvt.rn.bf16x2.f32 gates, $2, $1;
        cvt.rn.bf16x2.f32 ups, $4, $3;
        shl.b32 gate_0, gates, 16;
        and.b32 gate_1, gates, 0xffff0000;
        shl.b32 up_0, ups, 16;
        and.b32 up_1, ups, 0xffff0000;
        mul.f32 e_0, gate_0, 0fBFB8AA3B;
        mul.f32 e_1, gate_1, 0fBFB8AA3B;"""
        + _logistic()
        + """
        mul.f32 e_0, gate_0, e_0;
        mul.f32 e_1, gate_1, e_1;
        mul.f32 e_0, e_0, up_0;
        mul.f32 e_1, e_1, up_1;
        cvt.rn.bf16x2.f32 $0, e_1, e_0;
        }"""
    )


@gluon.constexpr_function
def _scaled_gate_instructions(dtype):
    """Of two outputs: gates, ups, and of both rows the factor for the exponent of two and the factor's square."""
    return (
        """{
        .reg .f32 e_0, e_1, both_0, both_1;
        mul.f32 e_0, $1, $5;
        mul.f32 e_1, $2, $6;"""
        + _logistic()
        + """
        mul.f32 both_0, $1, $7;
        mul.f32 both_1, $2, $8;
        mul.f32 both_0, both_0, $3;
        mul.f32 both_1, both_1, $4;
        mul.f32 both_0, both_0, e_0;
        mul.f32 both_1, both_1, e_1;
        cvt.rn.TYPE.f32 $0, both_1, both_0;
        }""".replace("TYPE", "bf16x2" if dtype == gl.bfloat16 else "f16x2")
    )


@gluon.constexpr_function
def _logistic():
    """Of two exponents of two, ``e_0`` and ``e_1``, in their place: ``1 / (1 + 2 ** e)``."""
    return """
        ex2.approx.ftz.f32 e_0, e_0;
        ex2.approx.ftz.f32 e_1, e_1;
        add.f32 e_0, e_0, 0f3F800000;
        add.f32 e_1, e_1, 0f3F800000;
        rcp.approx.ftz.f32 e_0, e_0;
        rcp.approx.ftz.f32 e_1, e_1;"""
