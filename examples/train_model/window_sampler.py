"""Random training windows: plain text at any offset, and conversations from their first token.

It knows token streams and how windows are drawn from them; it does not know the model or the optimizer.
"""

from __future__ import annotations

import random

import torch
from byte_level_bpe import END_OF_TEXT, render_chat
from corpus import conversations, turns
from tokenizers import Tokenizer
from torch import Tensor

CHAT_PASSES = 4  # times the dialogue is cut into conversations, each time elsewhere


class WindowSampler:
    """Draws batches from one device-resident stream that holds the text and then its conversations.

    The text is also held as `num_variants` random segmentations (BPE-dropout, Provilkov et al., 2020), so that a
    small corpus shows the model more than one way to spell it; `variant_share` of the text windows use them.
    """

    def __init__(
        self,
        text: str,
        tokenizer: Tokenizer,
        *,
        window_len: int,
        chat_share: float,
        bpe_dropout: float,
        num_variants: int,
        seed: int,
        device: torch.device,
    ) -> None:
        """Encode everything once; `window_len` is in tokens, the shares and the dropout are probabilities."""
        if not 0 <= chat_share <= 1:
            raise ValueError(f"chat_share={chat_share} must lie between 0 and 1")
        self._window_len, self._chat_share = window_len, chat_share
        self._generator = torch.Generator().manual_seed(seed)
        chat_ids, chat_starts = (
            _encode_conversations(text, tokenizer, random.Random(seed)) if chat_share else ([], [])
        )
        segmentations = [
            tokenizer.encode(text).ids,
            *_segmentations(text, tokenizer, bpe_dropout, num_variants),
        ]
        stream: list[int] = []
        self._segments: list[tuple[int, int]] = []  # first and last start of a window, inclusive
        for ids in segmentations:
            self._segments.append(_window_starts(len(stream), len(ids), window_len))
            stream += ids
        last_start = len(stream) + len(chat_ids) - window_len - 1
        self._chat_starts = [
            len(stream) + start for start in chat_starts if len(stream) + start <= last_start
        ]
        if chat_share and not self._chat_starts:
            raise ValueError(
                f"chat_share={chat_share} needs conversations of {window_len} tokens: text is too short"
            )
        self._stream = torch.tensor(stream + chat_ids, dtype=torch.int32, device=device)
        self._offsets = torch.arange(window_len + 1, device=device)

    def draw(self, batch_size: int, *, variant_share: float) -> tuple[Tensor, Tensor]:
        """Return inputs and targets, each `[batch_size, window_len]`."""
        starts = torch.tensor([self._draw_start(variant_share) for _ in range(batch_size)])
        starts = starts.to(self._stream.device, non_blocking=True)
        windows = self._stream[starts[:, None] + self._offsets].long()
        return windows[:, :-1], windows[:, 1:]

    def _draw_start(self, variant_share: float) -> int:
        kind, variant = torch.rand(2, generator=self._generator).tolist()
        if kind < self._chat_share:
            return self._chat_starts[self._draw_integer(0, len(self._chat_starts) - 1)]
        use_variant = variant < variant_share and len(self._segments) > 1
        segment = self._draw_integer(1, len(self._segments) - 1) if use_variant else 0
        return self._draw_integer(*self._segments[segment])

    def _draw_integer(self, lowest: int, highest: int) -> int:
        return int(torch.randint(lowest, highest + 1, (), generator=self._generator))


def _window_starts(first: int, num_tokens: int, window_len: int) -> tuple[int, int]:
    if num_tokens <= window_len:
        raise ValueError(
            f"window_len={window_len} must be under the {num_tokens} tokens of the training text"
        )
    return first, first + num_tokens - window_len - 1


def _segmentations(text: str, tokenizer: Tokenizer, bpe_dropout: float, num_variants: int) -> list[list[int]]:
    """Encode the text `num_variants` times, each merge skipped with probability `bpe_dropout`."""
    if not bpe_dropout:
        return []
    tokenizer.model.dropout = bpe_dropout  # type: ignore[attr-defined]
    try:
        return [tokenizer.encode(text).ids for _ in range(num_variants)]
    finally:
        tokenizer.model.dropout = None  # type: ignore[attr-defined]


def _encode_conversations(text: str, tokenizer: Tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """Return the conversations as one stream, each closed by the end-of-text token, and where each begins."""
    spoken = turns(text)
    chats = [chat for _ in range(CHAT_PASSES) for chat in conversations(spoken, rng)]
    rng.shuffle(chats)
    ids: list[int] = []
    starts: list[int] = []
    for encoding in tokenizer.encode_batch([render_chat(chat) + END_OF_TEXT for chat in chats]):
        starts.append(len(ids))
        ids += encoding.ids
    return ids, starts
