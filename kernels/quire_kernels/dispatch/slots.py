"""Which implementation changes the slots, reads a step off them and moves them on."""

from torch import Tensor

from quire_kernels.dispatch import device
from quire_kernels.slots import reference as slots_reference
from quire_kernels.slots.state import MaskedStops, SlotState, StepRows, StepTensors


def enter_changes(state: SlotState, changes: Tensor) -> None:
    if device.runs_triton(changes):
        from quire_kernels.slots.update import enter_changes as enter

        enter(state, changes)
    else:
        slots_reference.enter_changes(state, changes)


def fork_slots(state: SlotState, forks: Tensor) -> None:
    if device.runs_triton(forks):
        from quire_kernels.slots.update import fork_slots as fork

        fork(state, forks)
    else:
        slots_reference.fork_slots(state, forks)


def prepare_step(state: SlotState, rows: StepRows, block_size: int, out: StepTensors) -> None:
    if device.runs_triton(rows.slots):
        from quire_kernels.slots.step import prepare_step as prepare

        prepare(state, rows, block_size, out)
    else:
        slots_reference.prepare_step(state, rows, block_size, out)


def advance_slots(
    state: SlotState, rows: StepRows, tokens: Tensor, drawn: Tensor, masked: MaskedStops | None = None
) -> None:
    if device.runs_triton(rows.slots):
        from quire_kernels.slots.step import advance_slots as advance

        advance(state, rows, tokens, drawn, masked)
    else:
        slots_reference.advance_slots(state, rows, tokens, drawn, masked)


def mask_early_stops(state: SlotState, rows: StepRows, seq_lens: Tensor, logits: Tensor) -> MaskedStops:
    if device.runs_triton(rows.slots):
        from quire_kernels.slots.step import mask_early_stops as mask

        return mask(state, rows, seq_lens, logits)
    return slots_reference.mask_early_stops(state, rows, seq_lens, logits)
