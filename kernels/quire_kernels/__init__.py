"""Device operations of a language model, each with a torch reference and, where it pays, a Triton kernel.

Knows no request, no scheduler and no model. Importing it needs torch alone: neither Triton nor a GPU.
"""

from quire_kernels.dispatch import (
    copy_blocks,
    fused_add_rms_norm,
    linear,
    paged_attention,
    rms_norm,
    rotary_embedding,
    rotary_embedding_and_cache,
    sample,
    silu_and_mul,
    token_logprobs,
)
from quire_kernels.sampling.params import SamplingTensors

__all__ = [
    "SamplingTensors",
    "copy_blocks",
    "fused_add_rms_norm",
    "linear",
    "paged_attention",
    "rms_norm",
    "rotary_embedding",
    "rotary_embedding_and_cache",
    "sample",
    "silu_and_mul",
    "token_logprobs",
]
