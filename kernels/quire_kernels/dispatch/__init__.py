"""The one place where an operation is given its implementation, by device, capability and shape.

Every function has the contract of the reference of the same name, whose docstring describes it. Nothing here
synchronises with the device or looks at values. Triton is imported only when a tensor on a GPU asks for it.

A room is named after the folder of kernels that it chooses from, and holds the choice alone: the shapes that suit a kernel
are noted in that folder. Only the room over `linear` is called `projection`, since the function would hide its name here.
`between` joins operations of several rooms. Whether Triton runs, and what a GPU's capability allows, is asked of `device`.
"""

from quire_kernels.dispatch.activation import silu_and_mul
from quire_kernels.dispatch.attention import paged_attention, rotary_decode_attention, schedule_prefill
from quire_kernels.dispatch.between import between_attentions
from quire_kernels.dispatch.blocks import copy_blocks
from quire_kernels.dispatch.device import attention_implementation
from quire_kernels.dispatch.norm import fused_add_rms_norm, rms_norm
from quire_kernels.dispatch.projection import (
    add_norm_project_,
    gated_linear,
    linear,
    linear_add_,
    pack_linear_weight,
    project_heads,
)
from quire_kernels.dispatch.rotary import rotary_embedding, rotary_embedding_and_cache
from quire_kernels.dispatch.sampling import apply_token_bitmask, likeliest_tokens, sample, token_logprobs
from quire_kernels.dispatch.slots import (
    advance_slots,
    enter_changes,
    fork_slots,
    mask_early_stops,
    prepare_step,
)

__all__ = [
    "add_norm_project_",
    "advance_slots",
    "apply_token_bitmask",
    "attention_implementation",
    "between_attentions",
    "copy_blocks",
    "enter_changes",
    "fork_slots",
    "fused_add_rms_norm",
    "gated_linear",
    "likeliest_tokens",
    "linear",
    "linear_add_",
    "mask_early_stops",
    "pack_linear_weight",
    "paged_attention",
    "prepare_step",
    "project_heads",
    "rms_norm",
    "rotary_decode_attention",
    "rotary_embedding",
    "rotary_embedding_and_cache",
    "sample",
    "schedule_prefill",
    "silu_and_mul",
    "token_logprobs",
]
