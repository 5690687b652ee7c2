"""Device operations of a language model, each with a torch reference and, where it pays, a Triton kernel.

Knows no request, no scheduler and no model. Importing it needs torch alone: neither Triton nor a GPU.
"""

from quire_kernels.attention.schedule import PrefillSchedule
from quire_kernels.dispatch import (
    add_norm_project_,
    advance_slots,
    apply_token_bitmask,
    between_attentions,
    copy_blocks,
    enter_changes,
    fork_slots,
    fused_add_rms_norm,
    gated_linear,
    likeliest_tokens,
    linear,
    linear_add_,
    mask_early_stops,
    pack_linear_weight,
    paged_attention,
    prepare_step,
    project_heads,
    rms_norm,
    rotary_decode_attention,
    rotary_embedding,
    rotary_embedding_and_cache,
    sample,
    schedule_prefill,
    silu_and_mul,
    token_logprobs,
)
from quire_kernels.rotary.places import HeadPlaces
from quire_kernels.sampling.bias import BiasTable, TokenBias
from quire_kernels.sampling.occurrence import OccurrenceTable
from quire_kernels.sampling.params import NO_TOKEN_LEFT, Penalties, SamplingTensors
from quire_kernels.slots.state import SlotState, StepRows, StepTensors, allocate_slot_state

__all__ = [
    "NO_TOKEN_LEFT",
    "BiasTable",
    "HeadPlaces",
    "OccurrenceTable",
    "Penalties",
    "PrefillSchedule",
    "SamplingTensors",
    "SlotState",
    "StepRows",
    "StepTensors",
    "TokenBias",
    "add_norm_project_",
    "advance_slots",
    "allocate_slot_state",
    "apply_token_bitmask",
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
