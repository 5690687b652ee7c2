"""Which tokens a sequence has seen and how often it has drawn them: what the penalties of its next draw depend on.

A slot whose sequence has penalties owns one row of int16 per token: the low 15 bits count draws, the sign bit says
that the prompt holds the token. Rows are taken from slabs that are allocated as slots ask for them, and the device
finds them by address: a captured graph reads the addresses, so slabs may come later than the graph. Knows slots and
tokens; no request.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quire_kernels.dispatch import device as on_device

IN_PROMPT = -32768
MAX_COUNT = 32767  # a count that is full stays as it is
_SLAB_ROWS = 16
_ALIGNMENT = 64  # elements; keeps rows apart by whole cache lines


class OccurrenceTable:
    """Rows of occurrences by slot. All calls are in the order of the stream; none waits for the device."""

    def __init__(self, num_slots: int, vocab_size: int, device: torch.device) -> None:
        self.addresses = torch.zeros(num_slots, dtype=torch.int64, device=device)
        """Per slot the address of its row, 0 where it has none."""
        self.vocab_size = vocab_size
        self._width = -(-vocab_size // _ALIGNMENT) * _ALIGNMENT
        self._rows: dict[int, Tensor] = {}
        self._free: list[Tensor] = []

    def __len__(self) -> int:
        """Slots that have a row."""
        return len(self._rows)

    def row(self, slot: int) -> Tensor | None:
        """The occurrences ``[V]`` int16 of a slot, or None when it has no penalties."""
        return self._rows.get(slot)

    def admit(
        self,
        slots: Sequence[int],
        token_ids: Sequence[Sequence[int]] | Sequence[NDArray[np.int32]],
        prompt_lens: Sequence[int],
    ) -> None:
        """Give each slot a row that holds the first ``prompt_lens`` of its tokens as prompt and the rest as drawn."""
        if not slots:
            return
        for slot in slots:
            self._take(slot)
        records: list[tuple[int, ...]] = []
        start = 0
        for slot, tokens, prompt_len in zip(slots, token_ids, prompt_lens, strict=True):
            records.append((self._rows[slot].data_ptr(), slot, start, prompt_len, len(tokens)))
            start += len(tokens)
        if on_device.runs_triton(self.addresses):
            from quire_kernels.sampling.occurrence_rows import reset_rows

            flat = torch.cat([torch.as_tensor(tokens, dtype=torch.int32) for tokens in token_ids])
            reset_rows(self._upload(records), self._upload(flat), self.addresses, self._width)
            return
        for (address, slot, *_), tokens, prompt_len in zip(records, token_ids, prompt_lens, strict=True):
            count_tokens(self._rows[slot], torch.as_tensor(tokens), prompt_len)
            self.addresses[slot] = address

    def fork(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Give the second slot of each pair a copy of what the first one has; no second may be a first."""
        copied = [(parent, child) for parent, child in pairs if parent in self._rows]
        records = [
            (self._rows[parent].data_ptr(), self._take(child).data_ptr(), child) for parent, child in copied
        ]
        if not records:
            return
        if on_device.runs_triton(self.addresses):
            from quire_kernels.sampling.occurrence_rows import copy_rows

            copy_rows(self._upload(records), self.addresses, self._width)
            return
        for (parent, child), (_, address, _) in zip(copied, records, strict=True):
            self._rows[child].copy_(self._rows[parent])
            self.addresses[child] = address

    def release(self, slots: Sequence[int]) -> None:
        """Take the rows of slots back; slots without one are passed over."""
        held = [slot for slot in dict.fromkeys(slots) if slot in self._rows]
        if held:
            self._free += [self._rows.pop(slot) for slot in held]
            self.addresses[self._upload(held)] = 0

    def clear(self) -> None:
        """Take every row back."""
        self.release(list(self._rows))

    def count(self, slot: int, token_id: int) -> None:
        """Add a drawn token, on a CPU; on a GPU the sampler does."""
        row = self._rows.get(slot)
        if row is not None and int(row[token_id]) & MAX_COUNT != MAX_COUNT:
            row[token_id] += 1

    def _take(self, slot: int) -> Tensor:
        if slot not in self._rows:
            if not self._free:
                slab = torch.empty((_SLAB_ROWS, self._width), dtype=torch.int16, device=self.addresses.device)
                self._free += slab[:, : self.vocab_size].unbind(0)
            self._rows[slot] = self._free.pop()
        return self._rows[slot]

    def _upload(self, values: object) -> Tensor:
        tensor = torch.as_tensor(values)
        if not self.addresses.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.addresses.device, non_blocking=True)


def count_tokens(row: Tensor, token_ids: Tensor, prompt_len: int) -> None:
    """Fill ``row [V]`` int16 for a sequence of known tokens: the truth for `occurrence_rows.reset_rows`."""
    drawn = torch.bincount(token_ids[prompt_len:].long(), minlength=row.shape[0]).clamp(max=MAX_COUNT)
    in_prompt = torch.zeros(row.shape[0], dtype=torch.bool, device=row.device)
    in_prompt[token_ids[:prompt_len].long()] = True
    row.copy_(drawn + torch.where(in_prompt, IN_PROMPT, 0))
