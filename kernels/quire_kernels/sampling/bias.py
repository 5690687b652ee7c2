"""What a request adds to the logits of its draws and which tokens it forbids, by slot.

A slot that is biased owns one row of float32 per token: what is added to its logit, minus infinity where the token
cannot be drawn. A forbidden word of several tokens forbids its last one only after the others: such a slot also owns a
list of its words and the last tokens that it drew, and each draw rewrites the places of the row that the words end in.

Both are found by address, so that a captured graph takes no notice of slots without them. The list is, in int32: number
of words; `depth`, the tokens that the longest word has before its last; the last `depth` tokens drawn, latest first, -1
for none; then for each word its last token, the bits of what the row holds there otherwise, and the tokens before it,
latest first, -1 beyond its start. Knows slots and tokens; no request.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

MAX_WORD_TOKENS = 32
_HEADER = 2
_FORBIDDEN = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBias:
    """What one slot adds and forbids."""

    biases: Mapping[int, float] = field(default_factory=dict[int, float])
    allowed: Sequence[int] = ()
    """The only tokens that can be drawn; empty allows all."""
    words: Sequence[Sequence[int]] = ()
    """Sequences of tokens of which the last cannot be drawn after the others; at most `MAX_WORD_TOKENS` long."""
    drawn: Sequence[int] = ()
    """Tokens that the sequence has drawn so far."""


@dataclass(frozen=True, slots=True)
class WordList:
    """The words of one slot, in device memory."""

    flat: Tensor  # int32, as the module describes it
    depth: int

    @property
    def history(self) -> Tensor:
        """The last tokens drawn ``[depth]``, in place."""
        return self.flat[_HEADER : _HEADER + self.depth]

    @property
    def entries(self) -> Tensor:
        """The words ``[W, 2 + depth]``, in place."""
        return self.flat[_HEADER + self.depth :].view(-1, 2 + self.depth)

    def forbid_ends(self, row: Tensor) -> None:
        """Restore the places of ``row`` that words end in, then forbid those whose other tokens were drawn last."""
        ends, before = self.entries[:, 0].long(), self.entries[:, 2:]
        row[ends] = self.entries[:, 1].contiguous().view(torch.float32)
        follows = ((before < 0) | (before == self.history)).all(1)
        row.scatter_reduce_(0, ends, torch.where(follows, _FORBIDDEN, float("inf")), "amin")


class BiasTable:
    """Biases by slot. All calls are in the order of the stream; none waits for the device."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.rows = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Per slot the address of its row, 0 where it has none."""
        self.words = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Per slot the address of its list of words, 0 where it has none."""
        self._vocab_size = vocab_size
        self._row_of: dict[int, Tensor] = {}
        self._words_of: dict[int, WordList] = {}

    def __len__(self) -> int:
        """Slots that are biased."""
        return len(self._row_of)

    def row(self, slot: int) -> Tensor | None:
        """What is added to the logits ``[V]`` of the slot's next draw; None when nothing is."""
        return self._row_of.get(slot)

    def admit(self, slots: Sequence[int], biases: Sequence[TokenBias]) -> None:
        """Give each slot a row, and a list of words where it has any of several tokens."""
        for slot, bias in zip(slots, biases, strict=True):
            row = self._row_of[slot] = self._filled_row(bias)
            words = [word for word in bias.words if len(word) > 1]
            if words:
                self._words_of[slot] = self._listed(words, row, bias.drawn)
        self._enter(slots)

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give the second slot of each pair a copy of what the first one has; no second may be a first."""
        biased = [(parent, child) for parent, child in pairs if parent in self._row_of]
        for parent, child in biased:
            self._row_of[child] = self._row_of[parent].clone()
            words = self._words_of.get(parent)
            if words is not None:
                self._words_of[child] = WordList(words.flat.clone(), words.depth)
        self._enter([child for _parent, child in biased])

    def release(self, slots: Sequence[int]) -> None:
        """Take the rows of slots back; slots without one are passed over."""
        held = [slot for slot in dict.fromkeys(slots) if slot in self._row_of]
        for slot in held:
            del self._row_of[slot]
            self._words_of.pop(slot, None)
        self._enter(held)

    def note_drawn(self, slot: int, token: int) -> None:
        """Enter a draw into the words of its slot: the truth for `bias_rows.note_drawn`, used on a CPU."""
        words = self._words_of.get(slot)
        if words is not None:
            words.history[1:] = words.history[:-1].clone()
            words.history[0] = token
            words.forbid_ends(self._row_of[slot])

    def _filled_row(self, bias: TokenBias) -> Tensor:
        base = _FORBIDDEN if bias.allowed else 0.0
        row = torch.full((self._vocab_size,), base, dtype=torch.float32, device=self.rows.device)
        if bias.allowed:
            row[self._upload(bias.allowed)] = 0.0
        if bias.biases:
            row[self._upload([*bias.biases])] += self._upload([*bias.biases.values()], torch.float32)
        forbidden = [word[0] for word in bias.words if len(word) == 1]
        if forbidden:
            row[self._upload(forbidden)] = _FORBIDDEN
        return row

    def _listed(self, words: Sequence[Sequence[int]], row: Tensor, drawn: Sequence[int]) -> WordList:
        """The list of the words; forbids in ``row`` what may not follow the tokens drawn so far."""
        depth = max(map(len, words)) - 1
        flat = [len(words), depth, *_latest_first(drawn, depth)]
        for word in words:
            flat += [word[-1], 0, *_latest_first(word[:-1], depth)]
        listed = WordList(self._upload(flat, torch.int32), depth)
        listed.entries[:, 1] = row[listed.entries[:, 0].long()].view(torch.int32)
        listed.forbid_ends(row)
        return listed

    def _enter(self, slots: Sequence[int]) -> None:
        if not slots:
            return
        at = self._upload(slots)
        self.rows[at] = self._upload(
            [self._row_of[slot].data_ptr() if slot in self._row_of else 0 for slot in slots]
        )
        lists = [self._words_of.get(slot) for slot in slots]
        self.words[at] = self._upload([each.flat.data_ptr() if each is not None else 0 for each in lists])

    def _upload(self, values: Sequence[int] | Sequence[float], dtype: torch.dtype = torch.int64) -> Tensor:
        tensor = torch.tensor(values, dtype=dtype)
        if not self.rows.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.rows.device, non_blocking=True)


def _latest_first(tokens: Sequence[int], depth: int) -> list[int]:
    """The last ``depth`` tokens, latest first, and -1 for those that there are not."""
    latest = [*reversed(tokens[-depth:])]
    return latest + [-1] * (depth - len(latest))
