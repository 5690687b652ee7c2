"""How a warpgroup of `prefill_hopper.py` holds the rows that it multiplies or moves, and how its threads wait for one another."""

import triton.experimental.gluon as gluon
import triton.experimental.gluon.language as gl

WARPGROUP_ROWS = 64

# The barrier of a warpgroup has one name in Triton 3.6, and another from 3.7 on.
synchronize = getattr(gl, "thread_barrier", None) or gl.barrier


@gluon.constexpr_function
def product_layout(columns):
    """How a warpgroup holds a product of 64 rows."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def page_layout(columns):
    """How a warpgroup holds rows that it moves, 16 bytes a thread."""
    return gl.BlockedLayout([1, 8], [256 // columns, columns // 8], [4, 1], [1, 0])
