"""Executes plans on a device: slots in, forward pass, draws out.

Joins the slot table, the decoder, the cache and the sampler; knows no socket and no scheduler. `execute` returns a
handle whose result may be collected later, so that a device can be given the next step before this one is read.
"""

from collections.abc import Callable

import numpy as np
import torch
from quire_kernels import SamplingTensors, copy_blocks, sample, token_logprobs
from torch import Tensor

from quire.wire.plan import NO_LOGPROBS, StepPlan
from quire.wire.result import StepResult
from quire_worker.model.decoder import Decoder, StepInputs
from quire_worker.slot_table import Advance, Ints, SlotTable

PendingResult = Callable[[], StepResult]
"""Waits for a step and gives its result."""


class Runner:
    """One device's share of a group."""

    def __init__(self, decoder: Decoder, kv_cache: Tensor, slots: SlotTable) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._slots = slots
        self._device = kv_cache.device

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return self._slots.num_used_slots

    def drop_slots(self) -> None:
        """Forgets every sequence; weights and memory stay."""
        self._slots.clear()

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> PendingResult:
        """Runs one plan. Raises `PlanError` when it contradicts the slots."""
        slots = self._slots
        copies = slots.update(plan)
        if copies:
            copy_blocks(self._kv_cache, torch.tensor(copies, dtype=torch.int64, device=self._device))
        advance = slots.advance(plan)
        logits = self._decoder.forward(self._inputs(advance), self._kv_cache)
        drawn: list[int] = []
        if len(advance.draw_slots):
            logits = logits[self._to_device(advance.logits_index)]
            drawn = self._draw(logits, advance.draw_slots)
            slots.enter_draws(advance.draw_slots, drawn)
        result = _result(plan, advance, drawn)
        if drawn and (slots.num_logprobs[advance.draw_slots] != NO_LOGPROBS).any():
            self._add_logprobs(result, logits, advance, drawn)
        return lambda: result

    def _inputs(self, advance: Advance) -> StepInputs:
        query_start_loc = np.zeros(len(advance.slots) + 1, dtype=np.int32)
        np.cumsum(advance.query_lens, out=query_start_loc[1:])
        max_seq_len = int(advance.seq_lens.max())
        return StepInputs(
            token_ids=self._to_device(advance.token_ids),
            positions=self._to_device(advance.positions),
            slot_mapping=self._to_device(advance.slot_mapping),
            block_tables=self._to_device(self._slots.block_tables[advance.slots]),
            query_start_loc=self._to_device(query_start_loc),
            seq_lens=self._to_device(advance.seq_lens.astype(np.int32)),
            max_query_len=int(advance.query_lens.max()),
            max_seq_len=max_seq_len,
            draw_rows=self._to_device(advance.draw_rows),
        )

    def _draw(self, logits: Tensor, draw_slots: Ints) -> list[int]:
        slots = self._slots
        too_short = np.flatnonzero(slots.known_len[draw_slots] < slots.min_len[draw_slots])
        if len(too_short):
            logits = logits.clone()  # log-probabilities are of the raw logits
            for row in too_short.tolist():
                # An end-of-sequence token of generation_config.json may lie outside of the vocabulary.
                stops = [token for token in slots.stop_token_ids[draw_slots[row]] if token < logits.shape[1]]
                logits[row, stops] = float("-inf")
        params = SamplingTensors(
            temperature=self._to_device(slots.temperature[draw_slots]),
            top_k=self._to_device(slots.top_k[draw_slots]),
            top_p=self._to_device(slots.top_p[draw_slots]),
            min_p=self._to_device(slots.min_p[draw_slots]),
            seed=self._to_device(slots.seed[draw_slots]),
            sequence_index=self._to_device(slots.sequence_index[draw_slots]),
            position=self._to_device(slots.known_len[draw_slots].astype(np.int32)),
        )
        return sample(logits, params).tolist()

    def _add_logprobs(self, result: StepResult, logits: Tensor, advance: Advance, drawn: list[int]) -> None:
        """Fills the log-probability columns, in the order of the result's tokens."""
        wanted = self._slots.num_logprobs[advance.draw_slots]
        num_top = max(0, int(wanted.max()))
        tokens = torch.tensor(drawn, dtype=torch.int64, device=self._device)
        columns = token_logprobs(logits, tokens, num_top)
        logprobs, ranks, top_ids, top_logprobs = (column.tolist() for column in columns)
        for draw in np.argsort(advance.result_rows, kind="stable").tolist():
            num_alternatives = int(wanted[draw])
            if num_alternatives == NO_LOGPROBS:
                result.logprob_lens.append(0)
                continue
            result.logprob_lens.append(1 + num_alternatives)
            result.logprob_ids += [drawn[draw], *top_ids[draw][:num_alternatives]]
            result.logprob_values += [logprobs[draw], *top_logprobs[draw][:num_alternatives]]
            result.logprob_ranks += [ranks[draw], *range(1, num_alternatives + 1)]

    def _to_device(self, column: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(column)).to(self._device)


def _result(plan: StepPlan, advance: Advance, drawn: list[int]) -> StepResult:
    token_of_row: list[int | None] = [None] * plan.num_rows
    for row, token in zip(advance.result_rows.tolist(), drawn, strict=True):
        token_of_row[row] = token
    return StepResult(
        group_id=plan.group_id,
        epoch=plan.epoch,
        step_id=plan.step_id,
        num_tokens=[int(token is not None) for token in token_of_row],
        token_ids=[token for token in token_of_row if token is not None],
    )
