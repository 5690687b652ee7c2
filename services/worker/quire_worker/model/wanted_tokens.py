"""The attention of the last layer where few tokens go on: keys and values of all, queries of those alone whose logits are
wanted. Nobody reads what the others would have attended to.
"""

import torch
from quire_kernels import linear, paged_attention, rotary_embedding_and_cache
from torch import Tensor

from quire_worker.model.config import ModelConfig
from quire_worker.model.step_inputs import StepInputs
from quire_worker.model.weights import LayerWeights, Weights

_MANY_TOKENS = 1024
_TOKENS_PER_WANTED = 8
"""From so many tokens on, and so many for each that is wanted, it pays: of four prompts of 2,048 tokens and 32 layers it saves
two thirds of a projection and an attention: 0.4 % of the step by what these take, not measured as a whole."""


def suits_wanted_alone(inputs: StepInputs, weights: Weights) -> bool:
    """Whether the last layer attends by `attend_for_wanted`. A matter of shapes, so that every replay agrees."""
    wanted, layers = inputs.logits_rows, weights.layers
    return (
        wanted is not None
        and len(layers) > 1
        and not layers[-1].qkv.is_mkldnn  # packed, it cannot be cut
        and len(inputs.token_ids) >= max(_MANY_TOKENS, _TOKENS_PER_WANTED * len(wanted))
    )


def attend_for_wanted(
    layer: LayerWeights,
    normed: Tensor,
    inputs: StepInputs,
    kv: Tensor,
    *,
    config: ModelConfig,
    rotary: Tensor,
) -> Tensor:
    """Cache keys and values of `normed [T, hidden]`; return the attention `[R, q_size]` of the tokens `inputs.logits_rows`.

    Each of these is taken as a sequence of its own, which ends with it. `kv` is the last layer's cache.
    """
    wanted, q_size = inputs.logits_rows, config.q_size
    assert wanted is not None
    q_bias, kv_bias = None, None
    if layer.qkv_bias is not None:
        q_bias, kv_bias = layer.qkv_bias[:q_size], layer.qkv_bias[q_size:]
    k, v = (
        each.view(-1, config.num_key_value_heads, config.head_dim)
        for each in linear(normed, layer.qkv[q_size:], kv_bias).split(config.kv_size, dim=1)
    )
    norms = {"q_norm_weight": layer.q_norm, "k_norm_weight": layer.k_norm, "eps": config.rms_norm_eps}
    no_query = k[:, :0]
    rotary_embedding_and_cache(
        no_query, k, v, rotary, inputs.positions, kv[0], kv[1], inputs.slot_mapping, **norms
    )

    # Before the other lookup, an ordinary launch: a kernel that overlaps the one before it reads positions at once.
    positions = inputs.positions.index_select(0, wanted)
    q = linear(normed.index_select(0, wanted), layer.qkv[:q_size], q_bias)
    q = q.view(-1, config.num_attention_heads, config.head_dim)
    no_key, nowhere = q[:, :0], kv[:, :, :, :0]
    rotated = rotary_embedding_and_cache(
        q, no_key, no_key, rotary, positions, nowhere[0], nowhere[1], positions, **norms
    )
    # Rows of padding want the logits of the first token; in a step of padding alone it belongs to no sequence.
    owners = inputs.token_rows.index_select(0, wanted).clamp(min=0)
    attended = paged_attention(
        rotated,
        kv[0],
        kv[1],
        inputs.block_tables.index_select(0, owners),
        torch.arange(len(wanted) + 1, dtype=torch.int32, device=wanted.device),
        (positions + 1).to(torch.int32),
        scale=config.head_dim**-0.5,
        sliding_window=config.sliding_windows[-1],
        max_query_len=1,
        max_seq_len=inputs.max_seq_len,
    )
    return attended.reshape(-1, q_size)
