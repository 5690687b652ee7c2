"""Log-probabilities, rank and most likely alternatives of sampled tokens, from raw logits. Torch, any
device.
"""

import torch
from torch import Tensor


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return ``(logprob [S] f32, rank [S] int32, top_ids [S, num_top] int64, top_logprobs [S, num_top]
    f32)``.

    ``logits [S, V]`` are those of the model before temperature and masks. The rank of a token is one more
    than the number of strictly likelier tokens. Alternatives come likeliest first, equal ones by lowest id.
    Raises ``ValueError`` when ``num_top`` is negative or above V.
    """
    vocab_size = logits.shape[1]
    if not 0 <= num_top <= vocab_size:
        raise ValueError(f"num_top is {num_top}; it must be from 0 to the vocabulary size {vocab_size}")
    wide = logits.float()
    normaliser = wide.logsumexp(dim=1)
    chosen = wide.gather(1, tokens.long().unsqueeze(1))
    rank = (wide > chosen).sum(dim=1, dtype=torch.int32) + 1
    top_ids = _top_ids(wide, num_top)
    top_logprobs = wide.gather(1, top_ids) - normaliser.unsqueeze(1)
    return chosen.squeeze(1) - normaliser, rank, top_ids, top_logprobs


def likeliest_tokens(logits: Tensor, temperature: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Return ``(ids [S, num_top] int64, logprobs [S, num_top] f32)`` of each row's likeliest tokens, likeliest first.

    ``logits [S, V]`` are divided by ``temperature [S]``, which must be above 0; equal tokens come lowest id first.
    """
    wide = logits.float() / temperature.unsqueeze(1)
    ids = _top_ids(wide, num_top)
    return ids, wide.log_softmax(dim=1).gather(1, ids)


def _top_ids(wide: Tensor, num_top: int) -> Tensor:
    if num_top == 0:
        return torch.empty((wide.shape[0], 0), dtype=torch.int64, device=wide.device)
    # One integer key holds the value (in its high half) and the id: top-k over it has a defined order among
    # ties.
    key = (_ordered_int32(wide).long() << 32) | (0xFFFFFFFF - torch.arange(wide.shape[1], device=wide.device))
    return 0xFFFFFFFF - (key.topk(num_top, dim=1).values & 0xFFFFFFFF)


def _ordered_int32(values: Tensor) -> Tensor:
    """Map float32 to int32 so that integer order is the order of the floats (minus zero counts as zero)."""
    bits = (values + 0.0).contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
