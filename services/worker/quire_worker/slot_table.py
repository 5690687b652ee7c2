"""The host's view of the persistent batch: what each slot holds, and what a plan makes of it.

Applies the parts of a plan in the order that `quire.wire.plan` documents, checks each against what the slots hold, and
says what must change on the device. Lengths are counted as if no slot had ended: whether a stop token was drawn only
the device knows, and it drops what an ended slot would still do. Knows no model, no tensor library and no socket. A
plan that cannot be right raises `PlanError` before anything runs.
"""

from array import array
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from quire.sampling_rules import MAX_BAD_WORD_TOKENS
from quire.wire.plan import NO_LOGPROBS, SlotAdmission, StepPlan
from quire_worker.step_columns import Ints, PromptStretch, StepColumns


class PlanError(Exception):
    """A plan that contradicts what the slots hold: worker and scheduler have lost each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotChanges:
    """What the device must enter before a step, in this order."""

    releases: list[int]
    admissions: list[SlotAdmission]
    choices: list[tuple[int, int, int]]
    """(parent slot, slot, token): the slot becomes as its parent was, and the token its last."""
    grants: "Grants"
    copies: list[tuple[int, int]]
    """(source block, destination block) to copy."""
    forks: list[tuple[int, int, int]]
    """(parent slot, child slot, sequence index of the child)."""


@dataclass(frozen=True, slots=True)
class Grants:
    """Places of block tables and what they hold from now on, no place twice."""

    triples: "array[int]"
    """Flat: slot, index in its table, block."""

    def __len__(self) -> int:
        return len(self.triples) // 3

    def then(self, copied: list[tuple[int, int, int]]) -> "Grants":
        """These, and (slot, index, block) that come after them: of several for one place the last one counts."""
        granted = zip(*[iter(self.triples)] * 3, strict=True)
        block_at = {(slot, index): block for slot, index, block in (*granted, *copied)}
        return Grants(array("i", [each for place, block in block_at.items() for each in (*place, block)]))


class SlotTable:
    """Columns over slots. Positions count from the first prompt token."""

    def __init__(
        self, *, max_num_seqs: int, max_model_len: int, num_blocks: int, block_size: int, vocab_size: int
    ) -> None:
        self._num_blocks = num_blocks
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._max_model_len = max_model_len
        self._max_table_blocks = -(-max_model_len // block_size)
        self._tables = [array("i") for _ in range(max_num_seqs)]
        self._indexes = array("i", range(self._max_table_blocks))
        """Of a table's blocks, to be cut from."""
        self._given_tokens: list[Ints] = [np.empty(0, np.int64)] * max_num_seqs
        """Per slot the tokens it was admitted with; later ones stay on the device."""
        self._num_given = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_known = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_computed = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_table_blocks = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        self._num_prompt_logprobs = np.full(max_num_seqs, NO_LOGPROBS, dtype=np.int64)
        self._prompt_lens = np.zeros(max_num_seqs, dtype=np.int64)
        self._num_candidates = np.zeros(max_num_seqs, dtype=np.int64)
        self._is_used = np.zeros(max_num_seqs, dtype=bool)
        self._reported: set[int] = set()
        """Slots whose prompts' log-probabilities are wanted: few, and none in most steps."""

    @property
    def num_used_slots(self) -> int:
        """Slots that hold a sequence."""
        return int(self._is_used.sum())

    def clear(self) -> None:
        """Empties every slot."""
        self._is_used[:] = False
        self._reported.clear()

    def update(self, plan: StepPlan) -> SlotChanges:
        """Releases, admits, grants, copies and forks; returns what the device must follow."""
        for slot in plan.releases:
            self._is_used[self._checked(slot)] = False
            self._reported.discard(slot)
        for admission in plan.admissions:
            self._admit(admission)
        choices = list(zip(*[iter(plan.choices)] * 3, strict=True))
        self._choose(choices)
        grants = self._grant(plan.grants)
        copies: list[tuple[int, int]] = []
        copied: list[tuple[int, int, int]] = []
        for slot, kv_group, index, source, destination in zip(*[iter(plan.copies)] * 5, strict=True):
            copied.append(self._copy_block(slot, kv_group, index, source, destination))
            copies.append((source, destination))
        if copied:
            grants = grants.then(copied)
        forks = [self._fork(*triple) for triple in zip(*[iter(plan.forks)] * 3, strict=True)]
        return SlotChanges(
            releases=plan.releases,
            admissions=plan.admissions,
            choices=choices,
            grants=grants,
            copies=copies,
            forks=forks,
        )

    def advance(self, plan: StepPlan, changes: SlotChanges) -> StepColumns:
        """Moves the scheduled slots and the forked children on."""
        slots = np.array(plan.scheduled_slots, dtype=np.int64)
        query_lens = np.array(plan.scheduled_tokens, dtype=np.int64)
        self._check_schedule(slots, query_lens)
        is_decode = not changes.forks and query_lens.max() == 1
        if is_decode:
            plan_rows = (-self._num_computed[slots]).argsort(kind="stable")
            slots = slots[plan_rows]
        else:
            plan_rows = np.arange(len(slots) + len(changes.forks))
        starts = self._num_computed[slots]
        ends = starts + query_lens
        reaches_end = ends == self._num_known[slots]
        num_candidates = self._num_candidates[slots] * reaches_end
        query_start_loc = np.zeros(len(slots) + 1, dtype=np.int64)
        query_lens.cumsum(out=query_start_loc[1:])
        columns = StepColumns(
            slots=slots,
            advances=query_lens,
            query_start_loc=query_start_loc,
            logits_rows=query_start_loc[1:] - 1,
            draws=reaches_end & (num_candidates == 0),
            token_ids=self._token_ids(slots, starts, ends, query_start_loc),
            token_rows=np.arange(len(slots)).repeat(query_lens),
            num_logprobs=self._num_logprobs[slots],
            num_candidates=num_candidates,
            plan_rows=plan_rows,
            prompt_stretches=self._prompt_stretches(slots, starts, ends, query_start_loc),
            max_seq_len=int(ends.max()),
            is_decode=bool(is_decode),
        )
        if changes.forks:
            columns = self._with_children(columns, changes)
        self._num_computed[columns.slots] += columns.advances
        self._num_known[columns.slots] += columns.draws
        return columns

    def _token_ids(self, slots: Ints, starts: Ints, ends: Ints, query_start_loc: Ints) -> Ints:
        token_ids = np.full(int(query_start_loc[-1]), -1, dtype=np.int64)
        for row in (starts < self._num_given[slots]).nonzero()[0].tolist():
            given = self._given_tokens[slots[row]][starts[row] : ends[row]]
            token_ids[query_start_loc[row] : query_start_loc[row] + len(given)] = given
        return token_ids

    def _prompt_stretches(
        self, slots: Ints, starts: Ints, ends: Ints, query_start_loc: Ints
    ) -> tuple[PromptStretch, ...]:
        if not self._reported:
            return ()
        last = self._prompt_lens[slots] - 1
        wanted = (self._num_prompt_logprobs[slots] != NO_LOGPROBS) & (starts < last)
        stretches: list[PromptStretch] = []
        for row in np.flatnonzero(wanted).tolist():
            slot, start = int(slots[row]), int(starts[row])
            end = min(int(ends[row]), int(last[row]))
            stretches.append(
                PromptStretch(
                    row=row,
                    first_position=start + 1,
                    first_token=int(query_start_loc[row]),
                    token_ids=self._given_tokens[slot][start + 1 : end + 1],
                    num_alternatives=int(self._num_prompt_logprobs[slot]),
                )
            )
        return tuple(stretches)

    def _with_children(self, columns: StepColumns, changes: SlotChanges) -> StepColumns:
        row_of_slot = {slot: row for row, slot in enumerate(columns.slots.tolist()) if columns.draws[row]}
        for parent, child, _index in changes.forks:
            if parent not in row_of_slot:
                raise PlanError(f"fork of slot {parent} into {child}: the parent does not draw")
        parents = np.array([row_of_slot[parent] for parent, _child, _index in changes.forks], dtype=np.int64)
        children = np.array([child for _parent, child, _index in changes.forks], dtype=np.int64)
        ends = np.full(len(children), columns.num_tokens)
        return StepColumns(
            slots=np.concatenate((columns.slots, children)),
            advances=np.concatenate((columns.advances, columns.advances[parents])),
            query_start_loc=np.concatenate((columns.query_start_loc, ends)),
            logits_rows=np.concatenate((columns.logits_rows, columns.logits_rows[parents])),
            draws=np.concatenate((columns.draws, columns.draws[parents])),
            token_ids=columns.token_ids,
            token_rows=columns.token_rows,
            num_logprobs=np.concatenate((columns.num_logprobs, columns.num_logprobs[parents])),
            num_candidates=np.concatenate((columns.num_candidates, np.zeros(len(children), np.int64))),
            plan_rows=columns.plan_rows,
            prompt_stretches=columns.prompt_stretches,
            max_seq_len=columns.max_seq_len,
            is_decode=False,
        )

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
        token_ids = np.array(admission.token_ids, dtype=np.int64)
        if token_ids.view(np.uint64).max() >= self._vocab_size:  # negative ones are the largest there
            raise PlanError(
                f"admission of tokens {token_ids.min()} to {token_ids.max()}: the vocabulary size is {self._vocab_size}"
            )
        self._check_biases(admission)
        self._is_used[slot] = True
        self._given_tokens[slot] = token_ids
        self._tables[slot] = array("i")
        self._num_given[slot] = self._num_known[slot] = num_tokens
        self._num_computed[slot] = admission.num_computed_tokens
        self._num_table_blocks[slot] = 0
        self._num_logprobs[slot] = admission.num_logprobs
        self._num_prompt_logprobs[slot] = admission.num_prompt_logprobs
        if admission.num_prompt_logprobs != NO_LOGPROBS:
            self._reported.add(slot)
        self._prompt_lens[slot] = min(admission.prompt_len, num_tokens)
        if not 0 <= admission.num_candidates <= self._vocab_size:
            raise PlanError(
                f"admission with {admission.num_candidates} candidates of {self._vocab_size} tokens"
            )
        self._num_candidates[slot] = admission.num_candidates

    def _choose(self, choices: list[tuple[int, int, int]]) -> None:
        parents = {parent for parent, _slot, _token in choices}
        for parent, slot, token in choices:
            known = self._num_known[self._used(parent)]
            if not self._num_candidates[parent] or self._num_computed[parent] != known:
                raise PlanError(f"choice for slot {slot}: its parent {parent} waits for none")
            if not 0 <= token < self._vocab_size:
                raise PlanError(f"choice of token {token}: the vocabulary size is {self._vocab_size}")
            if slot != parent:
                if slot in parents:
                    raise PlanError(f"choice for slot {slot}, which is another's parent")
                self._copy_slot(parent, self._checked(slot))
        for slot in {slot for _parent, slot, _token in choices}:
            self._num_known[slot] += 1

    def _check_biases(self, admission: SlotAdmission) -> None:
        named = [token for token, _bias in admission.logit_bias]
        named += admission.allowed_token_ids
        for word in admission.bad_words:
            named += word
        if named and (min(named) < 0 or max(named) >= self._vocab_size):
            raise PlanError(
                f"admission that biases tokens {min(named)} to {max(named)}: the vocabulary size is {self._vocab_size}"
            )
        if max(map(len, admission.bad_words), default=1) > MAX_BAD_WORD_TOKENS:
            raise PlanError(f"admission with a bad word of more than {MAX_BAD_WORD_TOKENS} tokens")

    def _grant(self, grants: "array[int]") -> Grants:
        """Appends blocks to tables; those for one slot come together, hundreds of them for a cached prompt."""
        slots, kv_groups, blocks = grants[0::3], grants[1::3], grants[2::3]
        if any(kv_groups):
            self._check_kv_group(next(filter(None, kv_groups)))
        if blocks:
            ids = blocks.tolist()
            self._checked_block(min(ids))
            self._checked_block(max(ids))
        indexes = array("i")
        for slot, run in groupby(slots):
            table = self._tables[self._used(slot)]
            at, start = len(indexes), len(table)
            num_blocks = len(list(run))
            stop = start + num_blocks
            if stop > self._max_table_blocks:
                raise PlanError(
                    f"grant of block {blocks[at + self._max_table_blocks - start]} to slot {slot}: its table of "
                    f"{self._max_table_blocks} blocks is full"
                )
            table += blocks[at : at + num_blocks]
            indexes += self._indexes[start:stop]
            self._num_table_blocks[slot] = stop
        placed = grants[:]
        placed[1::3] = indexes
        return Grants(placed)

    def _copy_block(
        self, slot: int, kv_group: int, index: int, source: int, destination: int
    ) -> tuple[int, int, int]:
        self._check_kv_group(kv_group)
        table = self._tables[self._used(slot)]
        if not 0 <= index < len(table) or table[index] != source:
            raise PlanError(f"copy: slot {slot} does not hold block {source} at {index}")
        table[index] = self._checked_block(destination)
        return slot, index, destination

    def _fork(self, parent: int, child: int, sequence_index: int) -> tuple[int, int, int]:
        if self._is_used[self._checked(child)] or not self._is_used[self._checked(parent)]:
            raise PlanError(f"fork of slot {parent} into {child}: the child is in use or the parent is empty")
        self._copy_slot(parent, child)
        return parent, child, sequence_index

    def _copy_slot(self, parent: int, child: int) -> None:
        for column in (
            self._num_given, self._num_known, self._num_computed, self._num_table_blocks, self._num_logprobs,
            self._num_candidates, self._num_prompt_logprobs, self._prompt_lens, self._is_used,
        ):  # fmt: skip
            column[child] = column[parent]
        self._given_tokens[child] = self._given_tokens[parent]
        self._tables[child] = self._tables[parent][:]

    def _check_schedule(self, slots: Ints, query_lens: Ints) -> None:
        if len(slots) == 0:
            raise PlanError("a plan that schedules nothing")
        is_outside = slots.view(np.uint64).max() >= len(self._is_used)  # negative ones are the largest there
        if is_outside or not self._is_used[slots].all():
            raise PlanError("a plan that schedules an empty slot")
        if query_lens.min() < 1 or np.bincount(slots).max() > 1:
            raise PlanError("a plan that schedules a slot twice or by no token")
        ends = self._num_computed[slots] + query_lens
        over = (ends > self._num_known[slots]) | (ends > self._num_table_blocks[slots] * self._block_size)
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
