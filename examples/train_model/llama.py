"""A small Llama in plain PyTorch whose parameter names are those of a Hugging Face `LlamaForCausalLM` checkpoint.

It knows the architecture (Touvron et al., 2023: RMSNorm, rotary positions, SwiGLU; grouped-query attention after
Ainslie et al., 2023) with tied embeddings. It does not know text, tokenizers, files or optimizers.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

KeyValue = tuple[Tensor, Tensor]  # each [batch, num_key_value_heads, num_cached_tokens, head_dim]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The sizes of a model, under the names that `config.json` uses."""

    vocab_size: int
    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    max_position_embeddings: int = 1024
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        """Refuse sizes that no attention layer can have."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} must be even: rotary positions turn pairs of features"
            )


class LlamaForCausalLM(nn.Module):
    """Token ids in, logits over the next token out."""

    def __init__(self, shape: LlamaShape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.model = _Decoder(shape, dropout)
        self.apply(_initialise)
        residual_std = 0.02 / math.sqrt(
            2 * shape.num_hidden_layers
        )  # GPT-2: keeps the residual stream's variance
        for name, parameter in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(parameter, std=residual_std)

    def forward(self, token_ids: Tensor, cache: list[KeyValue] | None = None) -> Tensor:
        """Return logits `[batch, num_tokens, vocab_size]` for ids `[batch, num_tokens]`.

        `cache` holds one entry per layer for the tokens before these, or is empty before the first call; it is
        extended in place.
        """
        hidden = self.model(token_ids, cache)
        return functional.linear(hidden, self.model.embed_tokens.weight)


class _Decoder(nn.Module):
    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(_Layer(shape, dropout) for _ in range(shape.num_hidden_layers))
        self.norm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)
        cos, sin = _rotary_tables(shape)
        self.register_buffer("cos", cos, persistent=False)  # [max_position_embeddings, head_dim]
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, token_ids: Tensor, cache: list[KeyValue] | None) -> Tensor:
        is_first = not cache
        first = 0 if is_first else cache[0][0].shape[2]
        last = first + token_ids.shape[1]
        cos, sin = self.cos[first:last], self.sin[first:last]
        hidden = self.dropout(self.embed_tokens(token_ids))
        for index, layer in enumerate(self.layers):
            past = None if is_first else cache[index]
            hidden, present = layer(hidden, cos, sin, past)
            if cache is not None:
                cache[index : index + 1] = [present]
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.self_attn = _Attention(shape, dropout)
        self.mlp = _FeedForward(shape)
        self.input_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        attended, present = self.self_attn(self.input_layernorm(hidden), cos, sin, past)
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden))), present


class _Attention(nn.Module):
    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        query_size = shape.num_attention_heads * shape.head_dim
        key_value_size = shape.num_key_value_heads * shape.head_dim
        self.head_dim, self.dropout = shape.head_dim, dropout
        self.groups = shape.num_attention_heads // shape.num_key_value_heads
        self.q_proj = nn.Linear(shape.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(shape.hidden_size, key_value_size, bias=False)
        self.v_proj = nn.Linear(shape.hidden_size, key_value_size, bias=False)
        self.o_proj = nn.Linear(query_size, shape.hidden_size, bias=False)

    def forward(
        self, hidden: Tensor, cos: Tensor, sin: Tensor, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        query = _rotate(self._heads(self.q_proj(hidden)), cos, sin)
        key = _rotate(self._heads(self.k_proj(hidden)), cos, sin)
        value = self._heads(self.v_proj(hidden))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(self.groups, dim=1),
            value.repeat_interleave(self.groups, dim=1),
            attn_mask=_causal_mask(query.shape[2], key.shape[2], query.device) if past is not None else None,
            is_causal=past is None,
            dropout_p=self.dropout if self.training else 0.0,
        )  # [batch, num_attention_heads, num_tokens, head_dim]
        return self.o_proj(attended.transpose(1, 2).flatten(2)), (key, value)

    def _heads(self, projected: Tensor) -> Tensor:
        """Turn `[batch, num_tokens, num_heads * head_dim]` into `[batch, num_heads, num_tokens, head_dim]`."""
        return projected.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.up_proj = nn.Linear(shape.hidden_size, shape.intermediate_size, bias=False)
        self.down_proj = nn.Linear(shape.intermediate_size, shape.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)


def _rotary_tables(shape: LlamaShape) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, `[max_position_embeddings, head_dim]`, in the half-split order."""
    exponents = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
    positions = torch.arange(shape.max_position_embeddings, dtype=torch.float32)
    angles = torch.outer(positions, shape.rope_theta**-exponents).repeat(1, 2)
    return angles.cos(), angles.sin()


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = heads.chunk(2, dim=-1)
    return (heads * cos + torch.cat((-second, first), dim=-1) * sin).to(heads.dtype)


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """The last `num_queries` of `num_keys` positions, each allowed to see itself and what came before."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)
