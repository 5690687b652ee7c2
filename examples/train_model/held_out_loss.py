"""How well a model predicts a text, in bits per byte: a figure that does not depend on the tokenizer.

It knows models and token ids; it does not know files or training.
"""

from __future__ import annotations

import math

import torch
from llama import LlamaForCausalLM
from torch import Tensor
from torch.nn import functional


@torch.no_grad()
def bits_per_byte(
    model: LlamaForCausalLM, token_ids: Tensor, num_bytes: int, *, first_id: int, stride: int
) -> float:
    """Sum -log2 p over every one of `token_ids` `[num_tokens]` and divide by `num_bytes`, the text's UTF-8 length.

    Windows as long as the model's context begin `stride` tokens apart and each token is scored once, in the first
    window that reaches it. So every token but those of the first window sees at least `context - stride` tokens
    before it. The text's very first token is predicted from `first_id`.
    """
    was_training = model.training
    model.eval()
    context_len, num_tokens = model.shape.max_position_embeddings, len(token_ids)
    stream = torch.cat((token_ids.new_tensor([first_id]), token_ids))
    nats, scored = 0.0, 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + context_len, num_tokens)
        logits = model(stream[None, begin:end])[0, scored - begin :]  # [end - scored, vocab_size]
        nats += float(functional.cross_entropy(logits.float(), stream[scored + 1 : end + 1], reduction="sum"))
        scored = end
        if end == num_tokens:
            break
    model.train(was_training)
    return nats / math.log(2) / num_bytes
