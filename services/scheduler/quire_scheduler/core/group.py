"""One worker group as the core sees it: its capacity, its slots, what runs there and which steps are in flight.

Holds state and keeps it consistent; decides nothing (that is the planner) and ends nothing (that is the ledger).
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from quire_scheduler.core.kv_manager import KVManager
from quire_scheduler.core.name_table import NamedBlock
from quire_scheduler.core.request import NO_SLOT, Sequence, SlotId, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCapacity:
    """What the workers of a group can hold; see WorkerCapacity and ModelSpec in quire.v1."""

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    vocab_size: int

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens={self.max_num_batched_tokens} must be at least max_num_seqs="
                f"{self.max_num_seqs}, so that every running sequence advances in every step"
            )
        if self.num_blocks * self.block_size < self.max_model_len:
            raise ValueError(
                f"max_model_len={self.max_model_len} does not fit in {self.num_blocks} blocks of "
                f"{self.block_size} tokens, which hold {self.num_blocks * self.block_size}"
            )


@dataclass(frozen=True, slots=True)
class Step:
    """Snapshot of a plan in flight: results are matched to it, never to the present owner of a slot."""

    step_id: int
    rows: list[Sequence]
    num_tokens: list[int]
    """Tokens that each row computes; 0 for a forked child, which draws from its parent's logits."""
    named_blocks: list[NamedBlock]
    """What the prefix cache knows by this step; complete once the KV manager has settled."""
    releases: list[int]
    beam_leaders: list[Sequence]
    """Leaders of the beam searches whose candidates this step brings."""


class Group:
    """Slots, running sequences and steps of one worker group."""

    def __init__(
        self, group_id: int, epoch: int, capacity: GroupCapacity, *, enable_prefix_caching: bool
    ) -> None:
        self.group_id = group_id
        self.capacity = capacity
        self._enable_prefix_caching = enable_prefix_caching
        self.running: list[Sequence] = []
        """In policy order: the last one is preempted first."""
        self.prefilling: set[Sequence] = set()
        """Running sequences whose known tokens are not all planned yet."""
        self.begin_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Forgets slots, blocks and steps: the workers hold nothing. Nothing may run here any more."""
        assert not self.running, "a new epoch begins with sequences still running"
        self.epoch = epoch
        self.next_step_id = 0
        self.in_flight: deque[Step] = deque()
        self.kv = KVManager(
            self.capacity.num_blocks,
            self.capacity.block_size,
            enable_prefix_caching=self._enable_prefix_caching,
        )
        self.free_slots = [SlotId(slot) for slot in range(self.capacity.max_num_seqs - 1, -1, -1)]
        self.pending_releases: list[int] = []

    def enter(self, sequence: Sequence) -> None:
        """Puts a waiting sequence into a free slot and holds the slots of its forks."""
        sequence.status = Status.RUNNING
        sequence.group = self
        sequence.slot = self.free_slots.pop()
        sequence.fork_slots = [self.free_slots.pop() for _ in sequence.fork_indexes]
        insort(self.running, sequence, key=attrgetter("order"))

    def enter_forked(self, child: Sequence, slot: SlotId) -> None:
        """Puts a forked sequence into the slot that was held for it."""
        child.status = Status.RUNNING
        child.group = self
        child.slot = slot
        insort(self.running, child, key=attrgetter("order"))

    def leave(self, sequence: Sequence, status: Status) -> None:
        """Takes a running sequence out; its slot and blocks may be granted by the next plan.

        Safe while steps are in flight: plans of a group run in order, so that whoever gets the slot or a block
        writes to it after the last step that knew its former owner.
        """
        if self.running and self.running[-1] is sequence:
            self.running.pop()
        else:
            self.running.remove(sequence)
        self.prefilling.discard(sequence)
        self.kv.release(sequence)
        self.pending_releases.append(sequence.slot)
        self.free_slots.append(sequence.slot)
        self.free_slots += sequence.fork_slots
        sequence.fork_slots = []
        sequence.status = status
        sequence.group = None
        sequence.slot = NO_SLOT
        sequence.num_scheduled = 0
        sequence.num_computed = 0

    def take_releases(self) -> list[int]:
        """Slots that the next plan must empty."""
        releases, self.pending_releases = self.pending_releases, []
        return releases

    def void_steps(self, step_id: int) -> list[Step]:
        """Takes the steps from `step_id` on out of flight, latest first: the workers executed none of them."""
        voided: list[Step] = []
        while self.in_flight and self.in_flight[-1].step_id >= step_id:
            step = self.in_flight.pop()
            self.kv.withdraw(step.named_blocks)
            self.pending_releases += [slot for slot in step.releases if slot not in self.pending_releases]
            for sequence in step.rows:
                sequence.num_in_flight -= 1
            self.next_step_id = step.step_id
            voided.append(step)
        return voided


def unique_sequences(steps: Iterable[Step]) -> list[Sequence]:
    """Every sequence with a row in `steps`, once."""
    return list({id(sequence): sequence for step in steps for sequence in step.rows}.values())
