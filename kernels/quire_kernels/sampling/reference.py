"""Sampling in torch, written for reading: what every faster sampler must choose.

A token is the argmax of ``logit / temperature + gumbel`` over the tokens that the masks keep (the Gumbel-max
trick, see Maddison et al., "A* Sampling", 2014). Masks never move the noise, so a draw does not depend on
its neighbours, on the order of the vocabulary, or on which other masks are set. Knows no request; the logits
may already carry penalties, biases and bit masks (forbidden tokens at minus infinity).
"""

import torch
from torch import Tensor

from quire_kernels.sampling.occurrence import MAX_COUNT
from quire_kernels.sampling.params import NO_TOKEN_LEFT, Penalties, SamplingTensors
from quire_kernels.sampling.philox import gumbel_from_bits, vocabulary_bits


def sample(logits: Tensor, params: SamplingTensors) -> Tensor:
    """Return one token id per row, int64 ``[S]``, from ``logits [S, V]``.

    Rows of temperature 0 take the argmax; equal maxima go to the lowest id, with and without noise. A row that is minus
    infinity everywhere draws `NO_TOKEN_LEFT`.
    """
    scaled = scale_by_temperature(logits, params.temperature)
    bits = vocabulary_bits(params.seed, params.sequence_index, params.position, logits.shape[1])
    noisy = torch.where(keep_mask(scaled, params), scaled + gumbel_from_bits(bits), float("-inf"))
    greedy = (params.temperature == 0).unsqueeze(1)
    tokens = lowest_argmax(torch.where(greedy, logits.float(), noisy))
    return torch.where(logits.max(dim=1).values == float("-inf"), NO_TOKEN_LEFT, tokens)


def apply_token_bitmask(logits: Tensor, rows: Tensor, bitmask: Tensor) -> None:
    """Bar tokens in place: bit t of ``bitmask[i]`` is 0 where row ``rows[i]`` of ``logits [R, V]`` may not draw token t.

    ``rows [G]`` int32 names each row once; ``bitmask [G, W]`` int32 holds 32 tokens a word, the lowest bit first. Tokens
    past its last word are barred. Other rows stay as they are.
    """
    bits = (bitmask.unsqueeze(2) >> torch.arange(32, dtype=torch.int32, device=bitmask.device)) & 1
    barred = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits[rows.long(), : barred.shape[1]] = logits[rows.long(), : barred.shape[1]].masked_fill(
        barred, float("-inf")
    )
    logits[rows.long(), barred.shape[1] :] = float("-inf")


def scale_by_temperature(logits: Tensor, temperature: Tensor) -> Tensor:
    """Return ``logits * (1 / temperature)`` in float32; rows of temperature 0 stay as they are."""
    inverse = torch.where(temperature == 0, 1.0, 1.0 / temperature)
    return logits.float() * inverse.unsqueeze(1)


def penalise(logits: Tensor, penalties: Penalties) -> Tensor:
    """Return float32 logits to which biases were added and in which tokens that a row's sequence has seen are weighed
    down.

    Repetition counts the tokens of prompt and output, frequency and presence those of the output alone, in this order,
    after the biases and before temperature, as in vLLM. Rows whose slot has neither stay as they are.
    """
    wide = logits.to(torch.float32, copy=True)
    for row, slot in enumerate(penalties.slots.tolist()):
        bias = penalties.biases.row(slot)
        if bias is not None:
            wide[row] += bias
        occurrences = penalties.occurrences.row(slot)
        if occurrences is None:
            continue
        values, count = wide[row], occurrences.int() & MAX_COUNT
        repetition = penalties.repetition[slot]
        repeated = values * torch.where(values > 0, 1.0 / repetition, repetition)
        values = torch.where(occurrences != 0, repeated, values)
        wide[row] = values - penalties.frequency[slot] * count - penalties.presence[slot] * (count > 0)
    return wide


def keep_mask(scaled: Tensor, params: SamplingTensors) -> Tensor:
    """Return the boolean mask ``[S, V]`` of tokens that min-p, then top-k, then top-p keep.

    Each mask is a threshold on the value, so tokens that tie with the last one kept are kept too: the
    outcome does not depend on the order of ids. Top-p keeps a token while the probability (renormalised
    after min-p and top-k) of all strictly likelier tokens is below ``top_p``; the likeliest token is always
    kept.
    """
    threshold = torch.maximum(_min_p_threshold(scaled, params.min_p), _top_k_threshold(scaled, params.top_k))
    kept = torch.where(scaled >= threshold, scaled, float("-inf"))
    return (kept >= top_p_threshold(kept, params.top_p)) & (kept > float("-inf"))


def lowest_argmax(values: Tensor) -> Tensor:
    """Return the argmax of each row, int64 ``[S]``; among equal maxima the lowest index (torch promises no
    order).
    """
    maximum = values.max(dim=1, keepdim=True).values
    index = torch.arange(values.shape[1], device=values.device)
    return (
        torch.where(values == maximum, index, values.shape[1])
        .min(dim=1)
        .values.clamp(max=values.shape[1] - 1)
    )


def top_p_threshold(kept: Tensor, top_p: Tensor) -> Tensor:
    """Return ``[S, 1]``, the smallest value that top-p keeps of each row of ``kept``, or minus infinity
    where it is off.
    """
    descending = kept.sort(dim=1, descending=True).values
    probability = descending.double().softmax(dim=1)
    mass_before = probability.cumsum(dim=1) - probability
    num_kept = (mass_before < top_p.double().unsqueeze(1)).sum(dim=1, keepdim=True).clamp(min=1)
    threshold = descending.gather(1, num_kept - 1)
    return torch.where((top_p >= 1.0).unsqueeze(1), float("-inf"), threshold)


def _min_p_threshold(scaled: Tensor, min_p: Tensor) -> Tensor:
    return scaled.max(dim=1, keepdim=True).values + torch.log(min_p).unsqueeze(1)


def _top_k_threshold(scaled: Tensor, top_k: Tensor) -> Tensor:
    vocab_size = scaled.shape[1]
    descending = scaled.sort(dim=1, descending=True).values
    index = torch.where(top_k > 0, top_k.long().clamp(max=vocab_size), vocab_size) - 1
    return descending.gather(1, index.unsqueeze(1))
