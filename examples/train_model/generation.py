"""Plain batched sampling from a model, to look at what it says. It knows no text, no server and no stop strings."""

from __future__ import annotations

import torch
from llama import KeyValue, LlamaForCausalLM
from torch import Tensor


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    prompts: list[list[int]],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    generator: torch.Generator,
) -> list[list[int]]:
    """Continue each prompt by `max_tokens` tokens, all in one batch, and return the continuations.

    Rows advance together, a token a step; a row still inside its prompt takes the prompt's token instead of the
    drawn one. `generator` lives on the CPU, where tokens are drawn. Raises ValueError where a prompt is empty or
    leaves no room in the model's context.
    """
    prompt_lens = torch.tensor([len(prompt) for prompt in prompts])
    total_len = int(prompt_lens.max()) + max_tokens
    context_len = model.shape.max_position_embeddings
    if total_len > context_len or int(prompt_lens.min()) == 0:
        raise ValueError(
            f"prompts must hold 1 to {context_len - max_tokens} tokens each: context {context_len}"
        )
    tokens = torch.tensor([prompt + [0] * (total_len - len(prompt)) for prompt in prompts])
    model.eval()
    device = next(model.parameters()).device
    cache: list[KeyValue] = []
    for position in range(1, total_len):
        logits = model(tokens[:, position - 1 : position].to(device), cache)[:, -1].float().cpu()
        drawn = _draw(logits, temperature, top_p, generator)
        tokens[:, position] = torch.where(position < prompt_lens, tokens[:, position], drawn)
    return [
        row[prompt_len : prompt_len + max_tokens]
        for row, prompt_len in zip(tokens.tolist(), prompt_lens.tolist(), strict=True)
    ]


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> Tensor:
    """One token per row, `[num_prompts]`; top-p keeps the smallest set whose mass reaches it (Holtzman, 2020)."""
    probabilities, order = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities.masked_fill(mass_before >= top_p, 0.0)
    return order.gather(1, torch.multinomial(kept, 1, generator=generator))[:, 0]
