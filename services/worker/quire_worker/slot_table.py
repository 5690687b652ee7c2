"""The persistent batch: what each slot holds, as columns, and how a plan changes it.

Applies the parts of a plan in the order that `quire.wire.plan` documents. Knows tokens, block tables and parameters;
no model, no tensor library and no socket. A plan that cannot be right raises `PlanError` before anything runs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quire.wire import SCRATCH_BLOCK
from quire.wire.plan import NO_LOGPROBS, SlotAdmission, StepPlan

Ints = NDArray[np.int64]


class PlanError(Exception):
    """A plan that contradicts what the slots hold: worker and scheduler have lost each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """The rows of one step, ready for a forward pass. T tokens of S scheduled rows; D draws."""

    token_ids: Ints  # [T]
    positions: Ints  # [T]
    slot_mapping: Ints  # [T]
    query_lens: Ints  # [S]
    seq_lens: Ints  # [S], including this step's tokens
    slots: Ints  # [S]
    draw_rows: Ints  # [P]: index, among the T tokens, of each parent row that draws
    draw_slots: Ints  # [D]: who draws, parents first, then forked children
    logits_index: Ints  # [D]: which of the P rows of logits each draws from
    result_rows: Ints  # [D]: row of the step's result that each draw fills


class SlotTable:
    """Columns over slots. Positions count from the first prompt token."""

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, num_blocks: int, block_size: int, vocab_size: int
    ) -> None:
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._max_model_len = max_model_len
        max_blocks = -(-max_model_len // block_size)
        self.block_tables = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self.temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_p = np.ones(max_num_seqs, dtype=np.float32)
        self.min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self.top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self.seed = np.zeros(max_num_seqs, dtype=np.int64)
        self.sequence_index = np.zeros(max_num_seqs, dtype=np.int32)
        self.num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int32)
        self.min_len = np.zeros(max_num_seqs, dtype=np.int64)
        self.known_len = np.zeros(max_num_seqs, dtype=np.int64)
        self.stop_token_ids: list[frozenset[int]] = [frozenset()] * max_num_seqs
        self._token_ids = np.zeros((max_num_seqs, max_model_len + 1), dtype=np.int32)
        self._max_len = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_table_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self._is_used = np.zeros(max_num_seqs, dtype=bool)
        self._has_ended = np.zeros(max_num_seqs, dtype=bool)

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return int(self._is_used.sum())

    def clear(self) -> None:
        """Empties every slot."""
        self._is_used[:] = False

    def update(self, plan: StepPlan) -> list[tuple[int, int]]:
        """Releases, admits, grants and copies; returns the (source, destination) blocks to copy."""
        for slot in plan.releases:
            self._is_used[self._checked(slot)] = False
        for admission in plan.admissions:
            self._admit(admission)
        grants = plan.grants
        for at in range(0, len(grants), 3):
            self._grant(grants[at], grants[at + 1], grants[at + 2])
        copies: list[tuple[int, int]] = []
        for at in range(0, len(plan.copies), 5):
            slot, kv_group, index, source, destination = plan.copies[at : at + 5]
            self._copy_block(slot, kv_group, index, source, destination)
            copies.append((source, destination))
        return copies

    def advance(self, plan: StepPlan) -> Advance:
        """Advances the scheduled slots and forks their children."""
        slots = np.array(plan.scheduled_slots, dtype=np.int64)
        query_lens = np.array(plan.scheduled_tokens, dtype=np.int64)
        self._check_schedule(slots, query_lens)
        ended = self._has_ended[slots]
        starts = self._num_computed[slots]
        ends = starts + query_lens
        token_rows = np.repeat(np.arange(len(slots)), query_lens)
        first_tokens = np.cumsum(query_lens) - query_lens
        positions = np.arange(len(token_rows)) - first_tokens[token_rows] + starts[token_rows]
        token_slots = slots[token_rows]
        blocks = self.block_tables[token_slots, positions // self._block_size].astype(np.int64)
        blocks[ended[token_rows]] = SCRATCH_BLOCK
        draws = ~ended & (ends == self.known_len[slots])
        self._num_computed[slots] = np.where(ended, starts, ends)
        draw_slots, logits_index, result_rows = self._fork(plan, slots, np.flatnonzero(draws))
        return Advance(
            token_ids=self._token_ids[token_slots, positions].astype(np.int64),
            positions=positions,
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            query_lens=query_lens,
            seq_lens=ends,
            slots=slots,
            draw_rows=(first_tokens + query_lens - 1)[draws],
            draw_slots=draw_slots,
            logits_index=logits_index,
            result_rows=result_rows,
        )

    def enter_draws(self, slots: Ints, token_ids: list[int]) -> None:
        """Appends one drawn token per slot; stop tokens and lengths end their slots."""
        for slot, token in zip(slots.tolist(), token_ids, strict=True):
            length = self.known_len[slot]
            self._token_ids[slot, length] = token
            self.known_len[slot] = length + 1
            if token in self.stop_token_ids[slot] or length + 1 >= self._max_len[slot]:
                self._has_ended[slot] = True

    def _admit(self, admission: SlotAdmission) -> None:
        slot = self._checked(admission.slot)
        num_tokens = len(admission.token_ids)
        if self._is_used[slot]:
            raise PlanError(f"admission into slot {slot}, which holds a sequence")
        if not 0 < num_tokens < admission.max_len <= self._max_model_len:
            raise PlanError(
                f"admission of {num_tokens} tokens with max_len={admission.max_len}: the worker's max_model_len is "
                f"{self._max_model_len}"
            )
        if not 0 <= admission.num_computed_tokens < num_tokens:
            raise PlanError(f"admission with {admission.num_computed_tokens} of {num_tokens} tokens computed")
        if min(admission.token_ids) < 0 or max(admission.token_ids) >= self._vocab_size:
            raise PlanError(
                f"admission of tokens {min(admission.token_ids)} to {max(admission.token_ids)}: the vocabulary "
                f"size is {self._vocab_size}"
            )
        self._is_used[slot] = True
        self._has_ended[slot] = False
        self._token_ids[slot, :num_tokens] = admission.token_ids
        self.known_len[slot] = num_tokens
        self._num_computed[slot] = admission.num_computed_tokens
        self._num_table_blocks[slot] = 0
        self.temperature[slot] = admission.temperature
        self.top_k[slot] = admission.top_k
        self.top_p[slot] = admission.top_p
        self.min_p[slot] = admission.min_p
        self.seed[slot] = admission.seed
        self.sequence_index[slot] = admission.sequence_index
        self.num_logprobs[slot] = admission.num_logprobs
        self.min_len[slot] = admission.min_len
        self._max_len[slot] = admission.max_len
        self.stop_token_ids[slot] = frozenset(admission.stop_token_ids)

    def _grant(self, slot: int, kv_group: int, block: int) -> None:
        num_blocks = self._num_table_blocks[self._used(slot)]
        self._check_kv_group(kv_group)
        if num_blocks >= self.block_tables.shape[1]:
            raise PlanError(
                f"grant of block {block} to slot {slot}: its table of {num_blocks} blocks is full"
            )
        self.block_tables[slot, num_blocks] = self._checked_block(block)
        self._num_table_blocks[slot] = num_blocks + 1

    def _copy_block(self, slot: int, kv_group: int, index: int, source: int, destination: int) -> None:
        self._check_kv_group(kv_group)
        num_blocks = self._num_table_blocks[self._used(slot)]
        if not 0 <= index < num_blocks or self.block_tables[slot, index] != source:
            raise PlanError(f"copy: slot {slot} does not hold block {source} at {index}")
        self.block_tables[slot, index] = self._checked_block(destination)

    def _fork(self, plan: StepPlan, slots: Ints, drawing_rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Copies parents into children; returns who draws, from which logits, into which result row."""
        draw_slots = slots[drawing_rows].tolist()
        logits_of_slot = {slot: index for index, slot in enumerate(draw_slots)}
        logits_index = list(range(len(draw_slots)))
        result_rows = drawing_rows.tolist()
        for number, at in enumerate(range(0, len(plan.forks), 3)):
            parent, child, sequence_index = plan.forks[at : at + 3]
            if self._is_used[self._checked(child)] or parent not in logits_of_slot:
                raise PlanError(
                    f"fork of slot {parent} into {child}: the child is in use or the parent does not draw"
                )
            self._copy_slot(parent, child, sequence_index)
            draw_slots.append(child)
            logits_index.append(logits_of_slot[parent])
            result_rows.append(len(slots) + number)
        return (
            np.array(draw_slots, np.int64),
            np.array(logits_index, np.int64),
            np.array(result_rows, np.int64),
        )

    def _copy_slot(self, parent: int, child: int, sequence_index: int) -> None:
        for column in (
            self.block_tables, self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.num_logprobs,
            self.min_len, self.known_len, self._token_ids, self._max_len, self._num_computed,
            self._num_table_blocks, self._is_used, self._has_ended,
        ):  # fmt: skip
            column[child] = column[parent]
        self.stop_token_ids[child] = self.stop_token_ids[parent]
        self.sequence_index[child] = sequence_index

    def _check_schedule(self, slots: Ints, query_lens: Ints) -> None:
        if len(slots) == 0:
            raise PlanError("a plan that schedules nothing")
        if slots.min() < 0 or slots.max() >= len(self._is_used) or not self._is_used[slots].all():
            raise PlanError("a plan that schedules an empty slot")
        if query_lens.min() < 1 or len(np.unique(slots)) != len(slots):
            raise PlanError("a plan that schedules a slot twice or by no token")
        ends = self._num_computed[slots] + query_lens
        over = ~self._has_ended[slots] & (
            (ends > self.known_len[slots]) | (ends > self._num_table_blocks[slots] * self._block_size)
        )
        if over.any():
            raise PlanError(f"slot {slots[over][0]} is scheduled past the tokens or blocks it has")

    def _check_kv_group(self, kv_group: int) -> None:
        if kv_group != 0:
            raise PlanError(f"KV group {kv_group}: this worker has one, 0")

    def _checked(self, slot: int) -> int:
        if not 0 <= slot < len(self._is_used):
            raise PlanError(f"slot {slot}: this worker has {len(self._is_used)}")
        return slot

    def _used(self, slot: int) -> int:
        if not self._is_used[self._checked(slot)]:
            raise PlanError(f"slot {slot} is empty")
        return slot

    def _checked_block(self, block: int) -> int:
        if not 1 <= block <= self._num_blocks:
            raise PlanError(f"block {block}: this worker has 1 to {self._num_blocks}")
        return block
