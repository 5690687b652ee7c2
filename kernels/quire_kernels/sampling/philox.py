"""Philox4x32-10 and the noise made of it, in torch. The integers are the same on every device.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3" (2011), and its Random123 test vectors.

The draw for a token has key ``(seed low, seed high)``, counter ``(token_id >> 2, position, sequence_index,
purpose)`` and takes output lane ``token_id & 3``. Torch has no full uint32 arithmetic, so words are held in
int64.
"""

import torch
from torch import Tensor

SAMPLING = 0  # the `purpose` word of noise that chooses tokens

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_SERIES_LIMIT = 2.0**-8

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Return the four output words of Philox4x32-10; arguments are int64 in ``[0, 2**32)`` and broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products wrap modulo 2**64, which leaves all 64 bits of the unsigned product in place.
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((product1 >> 32) & _WORD) ^ c1 ^ k0, product1 & _WORD
        c2, c3 = ((product0 >> 32) & _WORD) ^ c3 ^ k1, product0 & _WORD
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return c0, c1, c2, c3


def vocabulary_bits(seed: Tensor, sequence_index: Tensor, position: Tensor, vocab_size: int) -> Tensor:
    """Return the random words int64 ``[S, vocab_size]`` of every token of the vocabulary, for each of S
    rows.
    """
    groups = torch.arange(-(-vocab_size // 4), device=seed.device).unsqueeze(0)
    words = philox4x32(
        (
            groups,
            _word(position).unsqueeze(1),
            _word(sequence_index).unsqueeze(1),
            torch.full_like(groups, SAMPLING),
        ),
        (_word(seed).unsqueeze(1), _word(seed >> 32).unsqueeze(1)),
    )
    return torch.stack(words, dim=-1).flatten(1)[:, :vocab_size]


def token_bits(seed: Tensor, sequence_index: Tensor, position: Tensor, token_ids: Tensor) -> Tensor:
    """Return the random words int64 ``[n]`` of ``token_ids [n]``, whose rows' facts are given element by
    element.
    """
    words = philox4x32(
        (token_ids >> 2, _word(position), _word(sequence_index), torch.full_like(token_ids, SAMPLING)),
        (_word(seed), _word(seed >> 32)),
    )
    return torch.stack(words, dim=-1).gather(-1, (token_ids & 3).unsqueeze(-1)).squeeze(-1)


def exponential_from_bits(bits: Tensor) -> Tensor:
    """Return the standard exponential draw ``-log(u)``, ``u = (bits + 0.5) / 2**32``, in float32 and in
    [2**-33, 23).

    Near 1 float32 cannot hold ``u`` (the largest words would round to exactly 1), so there ``-log(1 - v)``
    is summed as a series in ``v = 1 - u``, which float32 holds to full relative precision. Neither branch
    meets 0 or 1.
    """
    u = (bits.float() + 0.5) * 2.0**-32
    v = ((_WORD - bits).float() + 0.5) * 2.0**-32
    series = v * (1.0 + v * (0.5 + v * (1.0 / 3.0 + v * 0.25)))
    return torch.where(v < _SERIES_LIMIT, series, -torch.log(u))


def gumbel_from_bits(bits: Tensor) -> Tensor:
    """Return the standard Gumbel draw ``-log(-log(u))`` of each word, in float32, finite for every word."""
    return -torch.log(exponential_from_bits(bits))


def _word(values: Tensor) -> Tensor:
    return values.long() & _WORD
