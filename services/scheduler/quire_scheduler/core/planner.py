"""Cuts the plan of one step of one worker group: who advances, by how much, and who comes in.

One token budget per step and no phases: every running sequence catches up with what it knows, in policy order, one
token for those that decode and a chunk for those that do not; then waiting sequences enter while slots, blocks and
budget last. When blocks run out, the last in policy order gives up its own and waits again (preemption by
recompute). Since running sequences are visited in policy order, a victim never has a row in the plan being cut.

A prompt too long for what the budget leaves takes half of it while others want to enter too, so that a short request
is not stuck behind a long one; budget that nobody wanted goes back to it.

A step that carries a big chunk is a long step for those who decode in it. `max_num_prefill_tokens_while_decoding` caps
the prompt tokens of such steps, so that a trickle of arrivals does not show as pauses in running streams; but a
backlog is always worked off within a few steps, so that the cap bounds pauses under light load and costs no throughput
under heavy load, where the backlog lifts it.
"""

from quire.wire.plan import SlotAdmission, StepPlan
from quire_scheduler.core.beam_group import BeamGroup, put_back
from quire_scheduler.core.event import MilestoneKind
from quire_scheduler.core.group import Group, Step
from quire_scheduler.core.ledger import Ledger
from quire_scheduler.core.name_table import NamedBlock
from quire_scheduler.core.request import BlockId, Sequence, SlotId
from quire_scheduler.core.stats import Counters
from quire_scheduler.core.waiting_queue import WaitingQueue

_FAILED_PRECONDITION = 9

_MAX_PROMPT_LOGPROBS = 256
"""Prompt tokens of a step whose log-probabilities are wanted: each takes a row of logits over the whole vocabulary."""

_MIN_BACKLOG_SHARE = 4
"""A capped step computes at least one part in this many of the prompt tokens that are still to be computed."""


class Planner:
    """Cuts one plan; made anew for every step."""

    def __init__(
        self,
        group: Group,
        waiting: WaitingQueue,
        ledger: Ledger,
        counters: Counters,
        *,
        max_num_prefill_tokens_while_decoding: int | None = None,
    ) -> None:
        self._group = group
        self._waiting = waiting
        self._ledger = ledger
        self._counters = counters
        self._prefill_cap = max_num_prefill_tokens_while_decoding
        self._plan = StepPlan(group_id=group.group_id, epoch=group.epoch, step_id=group.next_step_id)
        self._rows: list[Sequence] = []
        self._children: list[tuple[Sequence, SlotId]] = []
        self._prefilled: list[Sequence] = []
        self._capped: list[int] = []
        self._beam_leaders: list[Sequence] = []
        self._spare_tokens = 0
        self._spare_prompt_logprobs = _MAX_PROMPT_LOGPROBS

    def cut(self) -> StepPlan | None:
        """The plan, entered into the group as in flight; None when no sequence can advance."""
        group = self._group
        self._yield_to_better()
        num_running = len(group.running)
        self._spend_budget()
        while not self._rows and len(group.running) < num_running:
            # Who left had been reckoned with. With nothing in flight no answer would come to cut another plan.
            num_running = len(group.running)
            self._spend_budget()
        group.kv.end_plan()
        if not self._rows:
            return None
        return self._commit()

    def _spend_budget(self) -> None:
        """Gives rows to those that run, then to those that wait; without any row nothing but who runs has changed."""
        self._spare_tokens = self._prefill_budget()
        self._advance_running()
        if self._waiting:
            self._admit_waiting()
        if self._capped:
            self._top_up()

    def _prefill_budget(self) -> int:
        """Tokens of this step that prompts may take: what decoding leaves, capped while anything decodes."""
        group = self._group
        if not self._waiting and not group.prefilling:
            return 0
        num_decoding = self._num_decoding()
        budget = group.capacity.max_num_batched_tokens - num_decoding
        if self._prefill_cap is None or not num_decoding:
            return budget
        return min(budget, max(self._prefill_cap, self._backlog() // _MIN_BACKLOG_SHARE))

    def _num_decoding(self) -> int:
        """Running sequences that may take a token of this step: neither prompts nor those whose last token is foreseen."""
        prefilling = self._group.prefilling
        return sum(
            (sequence.num_known < sequence.max_len or sequence.request.beams is not None)
            and sequence not in prefilling
            for sequence in self._group.running
        )

    def _backlog(self) -> int:
        """Prompt tokens that are still to be computed; what the prefix cache may save of those that wait counts too."""
        remaining = sum(sequence.num_known - sequence.num_scheduled for sequence in self._group.prefilling)
        return remaining + self._waiting.num_prompt_tokens

    def _advance_running(self) -> None:
        """The loop that a steady decode step spends its time in: keep every line of it cheap."""
        prefilling = self._group.prefilling
        add_row = self._rows.append
        add_slot = self._plan.scheduled_slots.append
        add_num_tokens = self._plan.scheduled_tokens.append
        for sequence in self._group.running:
            if prefilling and sequence in prefilling:
                self._advance_prefill(sequence)
                continue
            known = sequence.num_known
            if known >= sequence.max_len:
                # Its last token is in flight or here: never plan past a foreseeable end. Or it is a beam.
                if sequence.request.beams is not None:
                    self._advance_beams(sequence, sequence.request.beams)
                continue
            if known > sequence.room and not self._make_room(sequence, 1):
                continue
            sequence.num_scheduled = known
            sequence.num_known = known + 1
            sequence.num_in_flight += 1
            add_row(sequence)
            add_slot(sequence.slot)
            add_num_tokens(1)

    def _advance_beams(self, sequence: Sequence, beams: BeamGroup) -> None:
        """All beams of a request move on when the first one's turn comes and a choice waits, or give up together."""
        if sequence is not beams.leader or not beams.pending or not self._make_room_for_beams(beams):
            return
        self._plan.choices += beams.take_pending()
        self._beam_leaders.append(sequence)
        for beam in beams.in_order():
            made_room = self._group.kv.make_room(beam, 1, self._plan)
            assert made_room, f"{beam} moves on without a block"
            beam.num_scheduled = beam.num_known
            beam.num_known += 1
            beam.num_in_flight += 1
            self._rows.append(beam)
            self._plan.scheduled_slots.append(beam.slot)
            self._plan.scheduled_tokens.append(1)

    def _make_room_for_beams(self, beams: BeamGroup) -> bool:
        """Blocks for one more token of each beam; False if they had to give up, or will never fit."""
        group, request = self._group, beams.leader.request
        num_missing = group.kv.num_missing_for(beams.by_place)
        while not group.kv.pool.can_allocate(num_missing):
            victim = group.running[-1]
            if victim.request is not request:
                self._preempt(victim)
            elif group.running[0].request is not request:
                self._preempt(victim)
                return False
            else:
                self._ledger.fail(
                    request,
                    _FAILED_PRECONDITION,
                    f"beam_width={request.sampling.n} beams of {beams.leader.num_known} tokens do not fit the worker's "
                    f"{group.capacity.num_blocks} blocks of {group.capacity.block_size} tokens",
                    field="beam_width",
                )
                return False
        return True

    def _advance_prefill(self, sequence: Sequence) -> None:
        num_tokens, capped = self._chunk(sequence, sequence.num_known - sequence.num_scheduled)
        if num_tokens and self._make_room(sequence, num_tokens):
            self._schedule_chunk(sequence, num_tokens, capped=capped)

    def _chunk(self, sequence: Sequence, num_remaining: int) -> tuple[int, bool]:
        """How much of a prompt to compute now, and whether it was held back for others."""
        if sequence.request.owes_prompt_logprobs:
            return min(num_remaining, self._spare_tokens, self._spare_prompt_logprobs), False
        if num_remaining <= self._spare_tokens:
            return num_remaining, False
        prefilling = self._group.prefilling
        others_want = len(self._waiting) > 0 or len(prefilling) > (sequence in prefilling)
        if not others_want or self._spare_tokens < 2:
            return self._spare_tokens, False
        return self._spare_tokens // 2, True

    def _schedule_chunk(self, sequence: Sequence, num_tokens: int, *, capped: bool) -> None:
        if capped:
            self._capped.append(len(self._rows))
        self._rows.append(sequence)
        self._plan.scheduled_slots.append(sequence.slot)
        self._plan.scheduled_tokens.append(0)
        self._prefilled.append(sequence)
        sequence.num_in_flight += 1
        self._extend_row(len(self._rows) - 1, num_tokens)

    def _extend_row(self, row: int, num_tokens: int) -> None:
        sequence = self._rows[row]
        self._plan.scheduled_tokens[row] += num_tokens
        self._spare_tokens -= num_tokens
        if sequence.request.owes_prompt_logprobs:
            self._spare_prompt_logprobs -= num_tokens
        self._counters.num_prefill_tokens += num_tokens
        sequence.num_scheduled += num_tokens
        if sequence.num_scheduled == sequence.num_known:
            self._group.prefilling.discard(sequence)
            sequence.num_known += 1
            self._fork_children(sequence)

    def _fork_children(self, leader: Sequence) -> None:
        """The prompt is about to be complete: the other sequences of the request start from the same blocks."""
        request = leader.request
        if request.beams is not None:
            self._beam_leaders.append(leader)  # beams part with their first choice
            return
        for index, slot in zip(leader.fork_indexes, leader.fork_slots, strict=True):
            child = Sequence(request, index)
            child.order = (*leader.order[:-1], index)
            child.max_len = leader.max_len
            child.num_scheduled = leader.num_scheduled
            child.num_computed = leader.num_scheduled  # confirmed together with the step that forks it
            child.num_known = leader.num_known
            child.num_in_flight = 1
            request.live_sequences[index] = child
            self._group.kv.fork(leader, child)
            self._plan.forks += (leader.slot, slot, index)
            self._children.append((child, slot))
        leader.fork_indexes = []
        leader.fork_slots = []

    def _admit_waiting(self) -> None:
        while self._spare_tokens > 0:
            sequence = self._waiting.peek()
            if sequence is None or sequence.num_in_flight:
                return  # rows of its last run are still to be answered; nobody overtakes it meanwhile
            if self._refuse_unservable(sequence):
                continue
            if sequence.request.owes_prompt_logprobs and not self._spare_prompt_logprobs:
                return
            hits = self._fitting_prefix(sequence)
            if hits is None:
                return
            self._admit(sequence, hits)

    def _fitting_prefix(self, sequence: Sequence) -> list[BlockId] | None:
        """Cached blocks that start a sequence which fits beside what runs; None when it does not fit."""
        group = self._group
        if len(group.free_slots) < 1 + len(sequence.fork_indexes):
            return None
        hits = [] if sequence.request.owes_prompt_logprobs else group.kv.find_prefix(sequence)
        # One block in a hundred stays free for those that already run, so that entering does not mean preempting.
        num_spared = max(1, group.capacity.num_blocks // 100) if group.running else 0
        return hits if group.kv.can_hold(sequence, hits, num_spared) else None

    def _admit(self, sequence: Sequence, hits: list[BlockId]) -> None:
        group = self._group
        self._waiting.pop()
        group.enter(sequence)
        group.prefilling.add(sequence)
        group.kv.take_prefix(sequence, hits, self._plan)
        num_cached = len(hits) * group.capacity.block_size
        sequence.num_scheduled = sequence.num_computed = num_cached
        sequence.max_len = min(sequence.max_len, group.capacity.max_model_len)
        if sequence.request.beams is not None:
            sequence.request.beams.limit(group.capacity.max_model_len)
        self._counters.num_prefix_hit_tokens += num_cached
        self._counters.num_prefix_query_tokens += sequence.num_known
        self._ledger.note_cached_tokens(sequence)
        self._plan.admissions.append(_slot_admission(sequence))
        num_tokens, capped = self._chunk(sequence, sequence.num_known - num_cached)
        made_room = group.kv.make_room(sequence, num_tokens, self._plan)
        assert made_room, f"{sequence} was admitted without blocks"
        self._schedule_chunk(sequence, num_tokens, capped=capped)

    def _refuse_unservable(self, sequence: Sequence) -> bool:
        """Fails a request that no state of this group could hold, so that it does not block the queue for ever."""
        capacity = self._group.capacity
        num_slots = 1 + len(sequence.fork_indexes)
        if num_slots > capacity.max_num_seqs:
            self._ledger.fail(
                sequence.request,
                _FAILED_PRECONDITION,
                f"n={num_slots} sequences do not fit the worker's max_num_seqs={capacity.max_num_seqs}",
                field="n",
            )
            return True
        if sequence.num_known >= capacity.max_model_len:
            self._ledger.fail(
                sequence.request,
                _FAILED_PRECONDITION,
                f"{sequence.num_known} tokens do not fit the worker's max_model_len={capacity.max_model_len}",
                field="prompt",
            )
            return True
        return False

    def _top_up(self) -> None:
        """Gives what nobody wanted back to the chunks that were held back."""
        for row in self._capped:
            sequence = self._rows[row]
            num_tokens = min(self._spare_tokens, sequence.num_known - sequence.num_scheduled)
            if num_tokens > 0 and self._group.kv.make_room(sequence, num_tokens, self._plan):
                self._extend_row(row, num_tokens)

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for the next tokens, if need be those of the last in policy order; False if that was itself."""
        while not self._group.kv.make_room(sequence, num_tokens, self._plan):
            victim = self._group.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _yield_to_better(self) -> None:
        """A waiting sequence that is served before one that runs takes its place when it cannot enter otherwise."""
        running = self._group.running
        while running:
            sequence = self._waiting.peek()
            if sequence is None or sequence.num_in_flight or running[-1].order < sequence.order:
                return
            if self._fitting_prefix(sequence) is not None:
                return
            self._preempt(running[-1])

    def _preempt(self, victim: Sequence) -> None:
        put_back(self._group, victim, self._waiting)
        self._counters.num_preemptions += 1

    def _commit(self) -> StepPlan:
        group, plan = self._group, self._plan
        named: list[NamedBlock] = []
        for sequence in self._prefilled:
            group.kv.offer_later(sequence, sequence.num_scheduled, named)
            self._ledger.note(MilestoneKind.PREFILL_CHUNK, sequence.request, sequence.num_scheduled)
        for child, slot in self._children:
            group.enter_forked(child, slot)
            self._rows.append(child)
        plan.releases = group.take_releases()
        num_tokens = plan.scheduled_tokens + [0] * len(self._children)
        if group.in_flight:
            self._counters.num_overlapped_steps += 1
        self._counters.num_steps += 1
        step = Step(plan.step_id, self._rows, num_tokens, named, list(plan.releases), self._beam_leaders)
        group.in_flight.append(step)
        group.next_step_id += 1
        return plan


def _slot_admission(sequence: Sequence) -> SlotAdmission:
    sampling, beams = sequence.request.sampling, sequence.request.beams
    return SlotAdmission(
        slot=sequence.slot,
        token_ids=sequence.tokens(0, sequence.num_known),
        num_computed_tokens=sequence.num_computed,
        prompt_len=sequence.num_prompt,
        sequence_index=sequence.index,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        num_logprobs=sampling.num_logprobs,
        min_len=sequence.num_prompt + sampling.min_tokens,
        max_len=sequence.max_len if beams is None else beams.max_len,
        stop_token_ids=sampling.stop_token_ids if beams is None else (),
        num_candidates=0 if beams is None else beams.search.num_candidates,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        repetition_penalty=sampling.repetition_penalty,
        grammar=sampling.grammar,
        logit_bias=sampling.logit_bias,
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=sampling.bad_words,
        num_prompt_logprobs=sampling.num_prompt_logprobs if sequence.request.owes_prompt_logprobs else -1,
    )
