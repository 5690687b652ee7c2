"""The beams of one request, as sequences: they step together, and between two steps they are chosen anew.

Until its prompt is computed a beam search is one leading sequence that holds the slots of the others. Then as many
sequences run as there are beams, each in its slot for good: a beam that is not continued becomes a copy of one that is
continued more than once, sharing all its blocks. A choice waits for the plan that carries it and moves all beams on
at once, so that what the workers hold is always a whole step of the search.

A beam search that gives up its blocks starts over, and comes to the same beams: nothing of it was told before its end.
Knows nothing of scores (see `beam_search`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from quire_scheduler.core.beam_search import BeamSearch, Candidates, Choice
from quire_scheduler.core.group import Group
from quire_scheduler.core.request import Request, Sequence, Status, token_ids_of
from quire_scheduler.core.waiting_queue import WaitingQueue


def put_back(group: Group, sequence: Sequence, waiting: WaitingQueue) -> None:
    """Takes a running sequence out of its group to wait again; with a beam go all beams of its request."""
    if sequence.request.beams is not None:
        waiting.push(sequence.request.beams.start_over(group))
    else:
        group.leave(sequence, Status.WAITING)
        waiting.push(sequence)


@dataclass(frozen=True, slots=True)
class Succession:
    """One sequence of a choice: whose slot it continues, and with which token."""

    parent_slot: int
    beam: Sequence
    token: int


class BeamGroup:
    """The sequences of one beam search."""

    def __init__(self, request: Request, leader: Sequence) -> None:
        self._request = request
        self._leader = leader
        self.max_len = leader.num_prompt + request.sampling.max_tokens
        """Length at which every beam ends."""
        self._begin()

    def _begin(self) -> None:
        """The search is where it was when it came: nothing is computed and nothing known but the prompt."""
        assert self._request.beam_params is not None, "a beam search has a width"
        sampling, leader = self._request.sampling, self._leader
        self.search = BeamSearch(self._request.beam_params, sampling.eos_token_ids)
        self.by_place = [leader]
        """Beams in the order of the last choice, best first."""
        self.pending: list[Succession] = []
        """The choice that no plan carries yet."""
        leader.output_token_ids = token_ids_of(())
        leader.num_known = leader.num_prompt
        leader.fork_indexes = list(range(1, sampling.n))
        self._request.live_sequences = {leader.index: leader, **dict.fromkeys(leader.fork_indexes)}

    @property
    def leader(self) -> Sequence:
        """The beam that is first in policy order; planned with it are all."""
        return self._leader

    def limit(self, max_model_len: int) -> None:
        """The workers that it runs on hold no longer context."""
        self.max_len = min(self.max_len, max_model_len)

    def in_order(self) -> list[Sequence]:
        """The beams in policy order."""
        return sorted(self.by_place, key=lambda beam: beam.order)

    def choose(self, candidates: Iterable[Candidates]) -> int:
        """Enters the candidates of every beam, by place, and makes the beams of the next step.

        Returns how many there are: 0 when the search is over.
        """
        max_tokens = self.max_len - self._leader.num_prompt
        outputs = [beam.output_token_ids for beam in self.by_place]
        choices = self.search.choose(outputs, list(candidates), max_tokens)
        if choices:
            self._succeed(choices)
        return len(choices)

    def take_pending(self) -> list[int]:
        """The pending choice as it travels: flat triples (parent slot, slot, token)."""
        flat: list[int] = []
        for each in self.pending:
            flat += (each.parent_slot, each.beam.slot, each.token)
        self.pending = []
        return flat

    def start_over(self, group: Group) -> Sequence:
        """Takes all beams out of the group where they run; returns the leader, which waits."""
        for beam in self.by_place:
            group.leave(beam, Status.WAITING if beam is self._leader else Status.FINISHED)
        self._begin()
        return self._leader

    def _succeed(self, choices: list[Choice]) -> None:
        """Gives each choice a sequence: its parent itself for the first of a parent, else one that is not continued."""
        parents = [self.by_place[choice.parent] for choice in choices]
        continued: set[Sequence] = set()
        going_on = set(parents)
        spare = [beam for beam in self.by_place if beam not in going_on]
        heirs: list[Sequence] = []
        for parent in parents:
            heirs.append(self._copy(parent, spare) if parent in continued else parent)
            continued.add(parent)
        self.pending = [
            Succession(parent.slot, heir, choice.token)
            for parent, heir, choice in zip(parents, heirs, choices, strict=True)
        ]
        for heir, choice in zip(heirs, choices, strict=True):
            heir.output_token_ids.append(choice.token)
            heir.num_known = heir.num_confirmed
        self.by_place = heirs

    def _copy(self, parent: Sequence, spare: list[Sequence]) -> Sequence:
        group = parent.group
        assert group is not None, "beams are chosen where they run"
        if spare:
            child = spare.pop()
            group.kv.release(child)
        else:
            child = self._forked(group)
        child.output_token_ids = parent.output_token_ids[:]
        child.num_scheduled = parent.num_scheduled
        child.num_computed = parent.num_computed
        group.kv.fork(parent, child)
        return child

    def _forked(self, group: Group) -> Sequence:
        """One more sequence, in a slot that the leader held for it."""
        leader = self._leader
        child = Sequence(self._request, leader.fork_indexes.pop(0))
        child.order = (*leader.order[:-1], child.index)
        group.enter_forked(child, leader.fork_slots.pop(0))
        self._request.live_sequences[child.index] = child
        return child
