"""One whole step on the device, from slots to slots, in two halves: `forward` reads, embeds and runs all layers; `draw`
masks, draws and moves the slots on.

Each is a fixed sequence of launches, with no look at a value and no wait for the host, so that it can be captured. A
forward pass depends on the shape of its step, a draw on the number of rows alone; between them the host may change
logits. Knows the decoder, the cache and the batch; no plan.
"""

from copy import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from quire_kernels import (
    SamplingTensors,
    StepRows,
    StepTensors,
    advance_slots,
    apply_token_bitmask,
    mask_early_stops,
    prepare_step,
    sample,
)
from torch import Tensor

from quire_worker.device_batch import DeviceBatch
from quire_worker.model.decoder import Decoder
from quire_worker.model.step_inputs import StepInputs
from quire_worker.step_shape import StepShape


class DeviceStep:
    """Runs steps of any shape over one batch and one cache."""

    def __init__(self, decoder: Decoder, kv_cache: Tensor, batch: DeviceBatch, *, max_num_seqs: int) -> None:
        self.batch = batch
        self._decoder = decoder
        self.kv_cache = kv_cache
        self._block_size = kv_cache.shape[3]
        self._logits = decoder.allocate_logits(max_num_seqs)

    def shallow(self) -> "DeviceStep":
        """The same step over a shallow decoder: a moment's work, which launches every kernel of the whole one."""
        shallow = copy(self)
        shallow._decoder = self._decoder.shallow()
        return shallow

    def run(self, shape: StepShape) -> None:
        """Launches both halves; what the rows drew is in `batch.drawn` when the device gets there."""
        self.forward(shape)
        self.draw(shape.num_rows)

    @torch.inference_mode()
    def forward(self, shape: StepShape) -> None:
        """Launches the first half, whose outcome is `logits`."""
        batch = self.batch
        rows, tensors = batch.rows(shape), batch.tensors(shape)
        prepare_step(batch.state, rows, self._block_size, tensors)
        self._decoder.forward(self._inputs(shape, rows, tensors), self.kv_cache, self.logits(shape.num_rows))

    @torch.inference_mode()
    def forward_reporting(self, shape: StepShape, tokens: Tensor) -> Tensor:
        """Launches the first half and returns the logits `[P, vocab]` after other tokens of the step, `tokens [P]` int32."""
        batch = self.batch
        rows, tensors = batch.rows(shape), batch.tensors(shape)
        prepare_step(batch.state, rows, self._block_size, tensors)
        logits = self._decoder.allocate_logits(shape.num_rows + len(tokens))
        logits_rows = torch.cat((rows.logits_rows, tokens))
        inputs = replace(self._inputs(shape, rows, tensors), logits_rows=logits_rows)
        self._decoder.forward(inputs, self.kv_cache, logits)
        self.logits(shape.num_rows).copy_(logits[: shape.num_rows])
        return logits[shape.num_rows :]

    @torch.inference_mode()
    def draw(self, num_rows: int) -> None:
        """Launches the second half of a step of so many rows, padding included, over the `logits` of the first."""
        batch = self.batch
        shape = StepShape(num_tokens=0, num_rows=num_rows, is_decode=False, max_seq_len=0)
        rows, tensors = batch.rows(shape), batch.tensors(shape)
        masked = mask_early_stops(batch.state, rows, tensors.seq_lens, self.logits(num_rows))
        tokens = sample(masked.logits, _sampling(tensors), rows.draws, batch.penalties(rows))
        advance_slots(batch.state, rows, tokens, batch.drawn[:num_rows], masked)

    @torch.inference_mode()
    def mask(self, rows: list[int], bitmask: NDArray[np.int32]) -> None:
        """Bars tokens from rows of the next draw: those whose bits are 0 in `bitmask [len(rows), words]`."""
        if not rows:
            return
        # One copy to the device, of memory that torch keeps until it is done.
        packed = np.concatenate((bitmask.reshape(-1), np.array(rows, dtype=np.int32)))
        column = self.batch.to_device(packed)
        masks, numbers = column[: bitmask.size].view(bitmask.shape), column[bitmask.size :]
        apply_token_bitmask(self._logits, numbers, masks)

    def logits(self, num_rows: int) -> Tensor:
        """Logits `[num_rows, vocab]` of the last step, until the next one."""
        return self._logits[:num_rows]

    def _inputs(self, shape: StepShape, rows: StepRows, tensors: StepTensors) -> StepInputs:
        return StepInputs(
            token_ids=tensors.token_ids,
            positions=tensors.positions,
            slot_mapping=tensors.slot_mapping,
            block_tables=tensors.block_tables,
            token_rows=rows.token_rows,
            query_start_loc=rows.query_start_loc,
            seq_lens=tensors.seq_lens,
            max_query_len=1 if shape.is_decode else shape.num_tokens,
            max_seq_len=shape.max_seq_len,
            logits_rows=None if shape.is_decode else rows.logits_rows,
        )


def _sampling(tensors: StepTensors) -> SamplingTensors:
    return SamplingTensors(
        temperature=tensors.temperature,
        top_k=tensors.top_k,
        top_p=tensors.top_p,
        min_p=tensors.min_p,
        seed=tensors.seed,
        sequence_index=tensors.sequence_index,
        position=tensors.seq_lens,
    )
