"""The sampler for processors: the choices of `reference.py`, made without work whose result is thrown away.

Greedy rows draw no noise, rows whose masks keep few tokens draw noise for those alone, and top-p sorts the
whole vocabulary only for rows whose nucleus is wide.
"""

import torch
from torch import Tensor

from quire_kernels.sampling import reference
from quire_kernels.sampling.params import NO_TOKEN_LEFT, SamplingTensors
from quire_kernels.sampling.philox import gumbel_from_bits, token_bits, vocabulary_bits

_NARROW_NUCLEUS = 256  # tokens looked at before the whole row is sorted
_SPARSE_SHARE = 8  # noise is drawn token by token when fewer than 1 / 8 of the tokens are kept


def sample(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Return one token id per row, int64 ``[S]``; see `reference.sample`, which this equals."""
    tokens = logits.argmax(dim=1)  # on a CPU the first of equal maxima
    has_none_left = logits.gather(1, tokens.unsqueeze(1)).squeeze(1) == float("-inf")
    _draw_noisy(tokens, logits, params)
    return tokens.masked_fill_(has_none_left, NO_TOKEN_LEFT)


def _draw_noisy(tokens: Tensor, logits: Tensor, params: SamplingTensors) -> None:
    """Enter the draws of rows that are not greedy."""
    drawn = params.temperature.nonzero().squeeze(1)
    if drawn.numel() == 0:
        return
    whole_batch = drawn.numel() == len(params)
    row_params = params if whole_batch else params.rows(drawn)
    scaled = reference.scale_by_temperature(logits if whole_batch else logits[drawn], row_params.temperature)
    tokens[drawn] = _draw(scaled, row_params)


def _draw(scaled: Tensor, params: SamplingTensors) -> Tensor:
    limited = (params.top_k > 0) | (params.top_p < 1.0) | (params.min_p > 0.0)
    tokens = torch.empty(len(params), dtype=torch.int64)
    free_rows, limited_rows = (~limited).nonzero().squeeze(1), limited.nonzero().squeeze(1)
    if free_rows.numel():
        tokens[free_rows] = _draw_from_all(scaled[free_rows], params.rows(free_rows))
    if limited_rows.numel():
        tokens[limited_rows] = _draw_from_kept(scaled[limited_rows], params.rows(limited_rows))
    return tokens


def _draw_from_all(scaled: Tensor, params: SamplingTensors) -> Tensor:
    bits = vocabulary_bits(params.seed, params.sequence_index, params.position, scaled.shape[1])
    return (scaled + gumbel_from_bits(bits)).argmax(dim=1)


def _draw_from_kept(scaled: Tensor, params: SamplingTensors) -> Tensor:
    scaled = torch.where(_keep_mask(scaled, params), scaled, float("-inf"))
    kept = scaled > float("-inf")
    if int(kept.sum()) * _SPARSE_SHARE > kept.numel():
        return _draw_from_all(scaled, params)
    row, token_id = kept.nonzero(as_tuple=True)
    bits = token_bits(params.seed[row], params.sequence_index[row], params.position[row], token_id)
    scaled[row, token_id] += gumbel_from_bits(bits)
    return scaled.argmax(dim=1)


def _keep_mask(scaled: Tensor, params: SamplingTensors) -> Tensor:
    threshold = scaled.max(dim=1, keepdim=True).values + torch.log(params.min_p).unsqueeze(1)
    if bool((params.top_k > 0).any()):
        threshold = torch.maximum(threshold, _top_k_threshold(scaled, params.top_k))
    keep = scaled >= threshold
    if bool((params.top_p < 1.0).any()):
        kept = torch.where(keep, scaled, float("-inf"))
        keep &= kept >= _top_p_threshold(kept, params.top_p)
    return keep


def _top_k_threshold(scaled: Tensor, top_k: Tensor) -> Tensor:
    vocab_size = scaled.shape[1]
    largest_k = min(int(top_k.max()), vocab_size)
    descending = scaled.topk(largest_k, dim=1).values
    threshold = descending.gather(1, (top_k.long().clamp(min=1, max=largest_k) - 1).unsqueeze(1))
    return torch.where((top_k > 0).unsqueeze(1), threshold, float("-inf"))


def _top_p_threshold(kept: Tensor, top_p: Tensor) -> Tensor:
    descending = kept.topk(min(_NARROW_NUCLEUS, kept.shape[1]), dim=1).values
    probability = (descending - kept.logsumexp(dim=1, keepdim=True)).double().exp()
    mass = probability.cumsum(dim=1)
    limit = top_p.double().unsqueeze(1)
    num_kept = (mass - probability < limit).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = descending.gather(1, num_kept - 1)
    wide = ((mass[:, -1:] < limit) & (limit < 1.0)).squeeze(1).nonzero().squeeze(1)
    if wide.numel():
        threshold[wide] = reference.top_p_threshold(kept[wide], top_p[wide])
    return torch.where(limit >= 1.0, float("-inf"), threshold)
