"""The persistent batch on the device: its slots, and the buffers through which a step is told and answers.

Everything a captured graph reads has a fixed address here. The host writes one packed buffer per step; copies from
it are asynchronous, over memory that torch keeps until they are done. Knows no plan and no model.
"""

from array import array
from collections.abc import Callable
from struct import Struct
from typing import TypeVar

import numpy as np
import torch
from quire_kernels import (
    BiasTable,
    OccurrenceTable,
    Penalties,
    SlotState,
    StepRows,
    StepTensors,
    TokenBias,
    allocate_slot_state,
    copy_blocks,
    enter_changes,
    fork_slots,
)
from torch import Tensor

from quire.wire.plan import SlotAdmission
from quire_worker.slot_table import Grants, SlotChanges
from quire_worker.step_columns import StepColumns
from quire_worker.step_shape import StepShape

Array = TypeVar("Array", np.ndarray, Tensor)


_NO_INTS = np.empty(0, dtype=np.int64)
_NOTHING = StepColumns(
    slots=_NO_INTS,
    advances=_NO_INTS,
    query_start_loc=np.zeros(1, dtype=np.int64),
    logits_rows=_NO_INTS,
    draws=np.empty(0, dtype=np.bool_),
    token_ids=_NO_INTS,
    token_rows=_NO_INTS,
    num_logprobs=_NO_INTS,
    num_candidates=_NO_INTS,
    plan_rows=_NO_INTS,
    max_seq_len=0,
    is_decode=False,
)
_NO_CHANGES = SlotChanges(
    releases=[], admissions=[], choices=[], grants=Grants(array("i")), copies=[], forks=[]
)

_CHANGES_ROOM = 2**15
"""Most int32 of changes that travel with the rows of a step; more have a copy of their own."""

_ADMISSION_RECORD = Struct("<6i3fiq3fi")
"""As `quire_kernels.slots.reference.admit_slots` describes it."""


class DeviceBatch:
    """Slots and step buffers of one device."""

    def __init__(
        self,
        *,
        max_num_seqs: int,
        max_num_tokens: int,
        max_blocks: int,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self.state: SlotState = allocate_slot_state(max_num_seqs, max_blocks, device)
        self.drawn = torch.empty(max_num_seqs, dtype=torch.int32, device=device)
        self._occurrences = OccurrenceTable(max_num_seqs + 1, vocab_size, device)
        self._biases = BiasTable(max_num_seqs + 1, vocab_size, device)
        self._device = device
        packed_size = _packed_size(max_num_tokens, max_num_seqs)
        self._told = torch.zeros(_CHANGES_ROOM + packed_size, dtype=torch.int32, device=device)
        """What the host says of a step, in one piece around a fixed place: changes end there, and its rows begin."""
        self._changes, self._packed = self._told.split((_CHANGES_ROOM, packed_size))
        self._large_changes: Tensor | None = None
        """Changes of the loaded step that have no room there."""
        self._tensors = _allocate_tensors(max_num_tokens, max_num_seqs, max_blocks, device)

    def enter(
        self, changes: SlotChanges, kv_cache: Tensor, replay: Callable[[], bool] = lambda: False
    ) -> None:
        """Follows the changes that a plan makes to slots and blocks, once they are loaded.

        `replay` launches a captured `enter_loaded`, where there is one.
        """
        emptied = [*changes.releases, *(admission.slot for admission in changes.admissions)]
        self._occurrences.release(emptied)
        self._biases.release(emptied)
        if changes.choices:
            self._enter_choices(changes.choices)
        if self._large_changes is not None:
            enter_changes(self.state, self._large_changes)
        elif _any_loaded(changes) and not replay():
            self.enter_loaded()
        if changes.admissions:
            self._count_occurrences(changes.admissions)
            self._enter_biases(changes.admissions)
        if changes.copies:
            copy_blocks(kv_cache, self.to_device(np.array(changes.copies, dtype=np.int64)))
        if changes.forks:
            fork_slots(self.state, self.to_device(np.array(changes.forks, dtype=np.int32)))
            pairs = [(parent, child) for parent, child, _index in changes.forks]
            self._occurrences.fork(pairs)
            self._biases.fork(pairs)

    def enter_loaded(self) -> None:
        """Admits and grants what was loaded last; reads fixed places, so that it can be captured."""
        enter_changes(self.state, self._changes)

    def lift_min_len(self, slots: list[int]) -> None:
        """Lets slots end whatever their length."""
        if slots:
            self.state.min_len[self.to_device(np.array(slots, dtype=np.int64))] = 0

    def load_padding(self, shape: StepShape) -> None:
        """Makes the next step one of nothing but padding: it computes, and changes no slot."""
        self.load(_NO_CHANGES, _NOTHING, shape)

    def load(self, changes: SlotChanges, columns: StepColumns, shape: StepShape) -> None:
        """Puts the changes of a step and its rows, padded to `shape`, where its kernels look: one copy for all."""
        told = _pack_changes(changes) if _any_loaded(changes) else _NO_INTS
        self._large_changes = self.to_device(told) if len(told) > _CHANGES_ROOM else None
        num_told = 0 if self._large_changes is not None else len(told)
        size = num_told + _packed_size(shape.num_tokens, shape.num_rows)
        host = torch.empty(size, dtype=torch.int32, pin_memory=self._told.is_cuda)
        packed = host.numpy()
        packed[:num_told] = told[:num_told]
        views = _split(packed[num_told:], shape.num_tokens, shape.num_rows)
        paddings = (self.state.scratch_slot, 0, columns.num_tokens, 0, 0, 0, -1)
        parts = (
            columns.slots,
            columns.advances,
            columns.query_start_loc,
            columns.logits_rows,
            columns.draws,
            columns.token_ids,
            columns.token_rows,
        )
        for view, part, padding in zip(views, parts, paddings, strict=True):
            view[: len(part)] = part
            view[len(part) :] = padding
        start = _CHANGES_ROOM - num_told
        self._told[start : start + size].copy_(host, non_blocking=True)

    def rows(self, shape: StepShape) -> StepRows:
        """The rows of a step, as its kernels see them."""
        slots, advances, query_start_loc, logits_rows, draws, token_ids, token_rows = _split(
            self._packed, shape.num_tokens, shape.num_rows
        )
        return StepRows(
            slots=slots,
            advances=advances,
            query_start_loc=query_start_loc,
            logits_rows=logits_rows,
            draws=draws,
            token_ids=token_ids,
            token_rows=token_rows,
        )

    def tensors(self, shape: StepShape) -> StepTensors:
        """What a step's first kernel fills for the others."""
        num_tokens, num_rows, all_of = shape.num_tokens, shape.num_rows, self._tensors
        return StepTensors(
            token_ids=all_of.token_ids[:num_tokens],
            positions=all_of.positions[:num_tokens],
            slot_mapping=all_of.slot_mapping[:num_tokens],
            seq_lens=all_of.seq_lens[:num_rows],
            block_tables=all_of.block_tables[:num_rows],
            temperature=all_of.temperature[:num_rows],
            top_k=all_of.top_k[:num_rows],
            top_p=all_of.top_p[:num_rows],
            min_p=all_of.min_p[:num_rows],
            seed=all_of.seed[:num_rows],
            sequence_index=all_of.sequence_index[:num_rows],
        )

    def penalties(self, rows: StepRows) -> Penalties:
        """What changes the logits that a step's rows draw from."""
        state = self.state
        return Penalties(
            slots=rows.slots,
            repetition=state.repetition_penalty,
            frequency=state.frequency_penalty,
            presence=state.presence_penalty,
            occurrences=self._occurrences,
            biases=self._biases,
        )

    def to_device(self, column: np.ndarray) -> Tensor:
        """A copy on the device, without a wait."""
        tensor = torch.from_numpy(column)
        if self._device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    def _enter_choices(self, choices: list[tuple[int, int, int]]) -> None:
        copied = [(parent, slot, 0) for parent, slot, _token in choices if parent != slot]
        if copied:
            fork_slots(self.state, self.to_device(np.array(copied, dtype=np.int32)))
        slots = np.array([slot for _parent, slot, _token in choices], dtype=np.int64)
        tokens = np.array([token for _parent, _slot, token in choices], dtype=np.int32)
        self.state.last_token[self.to_device(slots)] = self.to_device(tokens)

    def _count_occurrences(self, admissions: list[SlotAdmission]) -> None:
        penalised = [admission for admission in admissions if admission.has_penalties]
        self._occurrences.admit(
            [admission.slot for admission in penalised],
            [np.asarray(admission.token_ids, dtype=np.int32) for admission in penalised],
            [admission.prompt_len for admission in penalised],
        )

    def _enter_biases(self, admissions: list[SlotAdmission]) -> None:
        biased = [admission for admission in admissions if admission.has_bias]
        self._biases.admit(
            [admission.slot for admission in biased],
            [
                TokenBias(
                    biases=dict(admission.logit_bias),
                    allowed=admission.allowed_token_ids,
                    words=admission.bad_words,
                    drawn=admission.token_ids[admission.prompt_len :],
                )
                for admission in biased
            ],
        )


def _allocate_tensors(num_tokens: int, num_rows: int, max_blocks: int, device: torch.device) -> StepTensors:
    def longs(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int64, device=device)

    def ints(*size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.int32, device=device)

    def floats() -> Tensor:
        return torch.zeros(num_rows, dtype=torch.float32, device=device)

    return StepTensors(
        token_ids=longs(num_tokens),
        positions=longs(num_tokens),
        slot_mapping=longs(num_tokens),
        seq_lens=ints(num_rows),
        block_tables=ints(num_rows, max_blocks),
        temperature=floats(),
        top_k=ints(num_rows),
        top_p=floats(),
        min_p=floats(),
        seed=longs(num_rows),
        sequence_index=ints(num_rows),
    )


def _packed_size(num_tokens: int, num_rows: int) -> int:
    return 5 * num_rows + 1 + 2 * num_tokens


def _split(packed: Array, num_tokens: int, num_rows: int) -> list[Array]:
    """The columns of `StepRows`, in order, as views of a packed buffer."""
    views: list[Array] = []
    at = 0
    for size in (num_rows, num_rows, num_rows + 1, num_rows, num_rows, num_tokens, num_tokens):
        views.append(packed[at : at + size])
        at += size
    return views


def _any_loaded(changes: SlotChanges) -> bool:
    """Whether there is anything that travels as `quire_kernels.slots.reference.enter_changes` describes it."""
    return bool(changes.admissions) or bool(changes.grants)


def _pack_changes(changes: SlotChanges) -> np.ndarray:
    """Admissions and grants as `quire_kernels.slots.reference.enter_changes` describes them."""
    records: list[bytes] = []
    stops: list[int] = []
    for admission in changes.admissions:
        records.append(_admission_record(admission, len(stops)))
        stops += admission.stop_token_ids
    told = array("i", stops) + changes.grants.triples
    told.frombytes(b"".join(records))
    told.extend((len(stops), len(changes.grants), len(records)))
    return np.frombuffer(told, dtype=np.int32)


def _admission_record(admission: SlotAdmission, first_stop: int) -> bytes:
    return _ADMISSION_RECORD.pack(
        admission.slot,
        admission.num_computed_tokens,
        admission.top_k,
        admission.sequence_index,
        admission.min_len,
        len(admission.stop_token_ids),
        admission.temperature,
        admission.top_p,
        admission.min_p,
        first_stop,
        admission.seed,
        admission.repetition_penalty,
        admission.frequency_penalty,
        admission.presence_penalty,
        0,
    )
