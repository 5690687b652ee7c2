"""Every kernel of a served step compiles for GPUs of three generations, on a machine that has none.

The interpreter accepts what the compiler refuses, so tests under it alone would let kernels rot.
"""

from pathlib import Path

import pytest

from tests.kernels.double_process import printed_by

pytest.importorskip("triton")

KERNELS = {
    "_paged_attention_decode_kernel",
    "_paged_attention_merge_kernel",
    "_schedule_prefill_rows_kernel",
    "_rotary_embedding_cache_kernel",
    "_rms_norm_rows_kernel",
    "_silu_and_mul_tiles_kernel",
    "_linear_gemv_kernel",
    "sample_tiles_kernel",
    "sample_rows_kernel",
    "_mask_early_stops_kernel",
    "_apply_token_bitmask_kernel",
    "_prepare_step_kernel",
    "_advance_slots_kernel",
    "_enter_changes_kernel",
    "_fork_slots_kernel",
    "_copy_blocks_spans_kernel",
}
"""What every generation runs."""
BY_PAGES = {"_paged_attention_decode_pages_kernel", "_paged_attention_prefill_hopper_kernel"}
BY_ROWS = {"_linear_held_rows_kernel", "_linear_tiles_hopper_kernel"}
OTHER_SHAPES = {"_linear_rows_kernel"}
BY_SLOTS = {"_paged_attention_prefill_kernel"}
MANY_ROWS = {"_linear_many_rows_kernel"}


@pytest.mark.parametrize(
    ("capability", "cache_dtype", "more"),
    [
        (90, "bfloat16", BY_ROWS | OTHER_SHAPES | MANY_ROWS | BY_PAGES),
        (90, "float8_e4m3fn", BY_ROWS | OTHER_SHAPES | MANY_ROWS | BY_SLOTS),
        (80, "bfloat16", BY_SLOTS),
        (
            100,
            "bfloat16",
            BY_SLOTS | OTHER_SHAPES | {"_linear_held_rows_kernel"},
        ),  # what is written for Hopper runs on it alone
    ],
)
def test_the_kernels_of_a_step_compile(
    capability: int, cache_dtype: str, more: set[str], tmp_path: Path
) -> None:
    printed = printed_by("compile_only", str(capability), cache_dtype, cache=tmp_path)
    assert set(printed.split()) == KERNELS | more
