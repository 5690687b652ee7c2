"""The scheduler core: a pure state machine over requests, worker groups and steps.

    add · abort · schedule() -> StepPlan · apply(StepResult) · fail(step) · reset(group, epoch) · drain_events() · settle()

No clock, socket, task, tensor or telemetry: time comes in as an argument and what happened goes out as columns. The
same core runs in production, under property tests, in golden scenarios and under a simulated clock. What may not go
in here: decisions about a plan (planner), about a row (answer), about an end (ledger) or about a block (kv_manager).

The pipeline contract: up to `pipeline_depth` plans of a group are in flight; plan N+1 is cut while step N runs, from
what is known by then, and names slots instead of tokens. Plans of one group run in order on one stream, which alone
makes it safe to grant a freed slot or block again in the next plan.
"""

from dataclasses import dataclass

from quire.wire.plan import StepPlan
from quire.wire.result import StepResult
from quire_scheduler.core.answer import StaleAnswer, apply_answer
from quire_scheduler.core.beam_group import BeamGroup, put_back
from quire_scheduler.core.event import Milestone, OwnerEvents
from quire_scheduler.core.group import Group, GroupCapacity, Step, unique_sequences
from quire_scheduler.core.ledger import Ledger
from quire_scheduler.core.planner import Planner
from quire_scheduler.core.policy import POLICIES
from quire_scheduler.core.request import FinishReason, OwnerId, Request, Sequence, Status
from quire_scheduler.core.stats import CoreStats, Counters
from quire_scheduler.core.waiting_queue import WaitingQueue

_INTERNAL = 13
_ALREADY_EXISTS = 6
_INVALID_ARGUMENT = 3
_RESOURCE_EXHAUSTED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreLimits:
    """How the core behaves; resolved from the scheduler's flags."""

    policy: str = "fcfs"
    enable_prefix_caching: bool = True
    pipeline_depth: int = 2
    max_num_requests: int = 4096
    """Live requests; one more is refused."""
    max_failures: int = 8
    """Failed steps in a row, with no token in between, after which a request is given up."""
    max_num_prefill_tokens_while_decoding: int | None = None
    """Most prompt tokens of a step in which some sequence decodes, or a quarter of all prompt tokens that wait if that
    is more. Small values keep the time between tokens even when prompts arrive one by one; a queue that grows lifts the
    cap, so that a saturated server keeps its large chunks. None leaves the whole budget of a step to prompts."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r} must be one of {sorted(POLICIES)}")
        for name in ("pipeline_depth", "max_num_requests", "max_failures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        cap = self.max_num_prefill_tokens_while_decoding
        if cap is not None and cap < 1:
            raise ValueError(f"max_num_prefill_tokens_while_decoding={cap} must be at least 1")


class RequestRefused(Exception):
    """A request that the core does not take; nothing has changed."""

    def __init__(self, code: int, message: str, *, field: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.field = field
        self.retry_after_ms = retry_after_ms


class Scheduler:
    """Continuous batching over worker groups."""

    def __init__(self, limits: CoreLimits) -> None:
        self._limits = limits
        self._policy = POLICIES[limits.policy]()
        self._waiting = WaitingQueue()
        self._ledger = Ledger(self._waiting)
        self._counters = Counters()
        self._groups: dict[int, Group] = {}
        self._num_arrivals = 0

    def add_group(self, group_id: int, epoch: int, capacity: GroupCapacity) -> None:
        """A worker group that holds nothing yet."""
        assert group_id not in self._groups, f"group {group_id} is live"
        self._groups[group_id] = Group(
            group_id, epoch, capacity, enable_prefix_caching=self._limits.enable_prefix_caching
        )

    def remove_group(self, group_id: int) -> None:
        """A worker group is gone: what ran there waits again, as after a preemption."""
        self._void(self._groups[group_id], everything=True)
        del self._groups[group_id]

    def add(self, request: Request, now: float = 0.0) -> None:
        """Takes a new or resumed request. Raises `RequestRefused`."""
        self._ledger.now = now
        self._check_admissible(request)
        request.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._ledger.open(request)
        if request.resumed:
            self._enqueue_resumed(request)
        else:
            self._enqueue_new(request)

    def abort(
        self, owner: OwnerId, handle: int, index: int | None = None, *, code: int = 0, message: str = ""
    ) -> bool:
        """Ends a request, or one of its sequences, at once. False when it has ended already.

        With a status `code` the request fails with that error instead of finishing as aborted.
        """
        request = self._ledger.find(owner, handle)
        if request is None or (index is not None and index not in request.live_sequences):
            return False
        if code:
            self._ledger.fail(request, code, message)
        elif request.beams is not None:
            self._ledger.abort_beams(request)  # no beam can be spared: the others depend on what it brings
        elif index is None:
            for live_index in list(request.live_sequences):
                self._abort_index(request, live_index)
        else:
            self._abort_index(request, index)
        return True

    def abort_id(self, tenant: str, request_id: str) -> bool:
        """Ends the request of that id. False when there is none."""
        request = self._ledger.find_id(tenant, request_id)
        return request is not None and self.abort(request.owner, request.handle)

    def abort_owner(self, owner: OwnerId) -> int:
        """Ends whatever an owner has; returns how many requests that were."""
        handles = [request.handle for request in self._ledger.requests() if request.owner == owner]
        for handle in handles:
            self.abort(owner, handle)
        return len(handles)

    def schedule(self, group_id: int, now: float = 0.0) -> StepPlan | None:
        """The group's next plan, from now on in flight; None when the pipeline is full or nothing can advance."""
        self._ledger.now = now
        group = self._groups[group_id]
        if len(group.in_flight) >= self._limits.pipeline_depth:
            return None
        planner = Planner(
            group,
            self._waiting,
            self._ledger,
            self._counters,
            max_num_prefill_tokens_while_decoding=self._limits.max_num_prefill_tokens_while_decoding,
        )
        return planner.cut()

    def apply(self, result: StepResult, now: float = 0.0) -> None:
        """Enters the answer to the group's oldest step in flight.

        Raises `StaleAnswer` (drop it) or `BrokenAnswer` (reset the group).
        """
        self._ledger.now = now
        group = self._groups.get(result.group_id)
        if group is None:
            raise StaleAnswer(f"group {result.group_id} is not live")
        apply_answer(group, result, self._ledger, self._counters)

    def fail(self, group_id: int, step_id: int) -> None:
        """The workers executed no step from `step_id` on, and still hold what they held before it."""
        self._void(self._groups[group_id], from_step_id=step_id)

    def reset(self, group_id: int, epoch: int) -> None:
        """The workers of a group dropped every slot and block and wait for step 0 of `epoch`."""
        group = self._groups[group_id]
        assert epoch > group.epoch, f"epoch {epoch} is not after {group.epoch}"
        self._void(group, everything=True)
        group.begin_epoch(epoch)
        self._counters.num_group_resets += 1

    def settle(self) -> None:
        """Does what plans and answers left because nobody waits for it: call it once plans are sent and events are told."""
        for group in self._groups.values():
            group.kv.settle()

    def drain_events(self) -> dict[OwnerId, OwnerEvents]:
        """What happened since the last drain, by owner."""
        return self._ledger.drain_events()

    def drain_milestones(self) -> list[Milestone]:
        """What happened to traced requests since the last drain."""
        return self._ledger.drain_milestones()

    def traced_in_newest_step(self, group_id: int) -> list[Request]:
        """Traced requests with a row in the plan that was cut last, each once."""
        rows = self._groups[group_id].in_flight[-1].rows
        return list({id(row.request): row.request for row in rows if row.request.traced}.values())

    def num_in_flight(self, group_id: int) -> int:
        """Steps of a group that have no answer yet."""
        return len(self._groups[group_id].in_flight)

    def num_running(self, group_id: int) -> int:
        """Sequences of a group that have a slot."""
        return len(self._groups[group_id].running)

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens of the sequences that wait."""
        return self._waiting.num_prompt_tokens

    def num_requests_of(self, owner: OwnerId) -> int:
        """Live requests of an owner."""
        return self._ledger.num_requests_of(owner)

    def is_live(self, owner: OwnerId, handle: int) -> bool:
        """Whether the owner's request has not ended."""
        return self._ledger.find(owner, handle) is not None

    def has_group(self, group_id: int) -> bool:
        """Whether the group is known."""
        return group_id in self._groups

    def has_work(self, group_id: int) -> bool:
        """Whether anything runs in the group or waits for any."""
        return bool(self._groups[group_id].running or self._waiting)

    def epoch(self, group_id: int) -> int:
        """The group's epoch."""
        return self._groups[group_id].epoch

    def stats(self) -> CoreStats:
        """Figures of this moment."""
        groups = list(self._groups.values())
        counters = self._counters
        return CoreStats(
            num_running=sum(len(group.running) for group in groups),
            num_running_beams=sum(
                sequence.request.beams is not None for group in groups for sequence in group.running
            ),
            num_waiting=len(self._waiting),
            num_requests=len(self._ledger),
            num_total_blocks=sum(group.kv.pool.num_blocks for group in groups),
            num_free_blocks=sum(group.kv.pool.num_free for group in groups),
            num_used_blocks=sum(group.kv.pool.num_used for group in groups),
            num_cached_blocks=sum(group.kv.pool.num_cached for group in groups),
            num_steps=counters.num_steps,
            num_overlapped_steps=counters.num_overlapped_steps,
            num_preemptions=counters.num_preemptions,
            num_prefix_hit_tokens=counters.num_prefix_hit_tokens,
            num_prefix_query_tokens=counters.num_prefix_query_tokens,
            num_generated_tokens=counters.num_generated_tokens,
            num_prefill_tokens=counters.num_prefill_tokens,
            num_group_resets=counters.num_group_resets,
            num_worker_groups=len(groups),
            kv_waste_ratio=_kv_waste_ratio(groups),
            block_size=groups[0].capacity.block_size if groups else 0,
        )

    def _check_admissible(self, request: Request) -> None:
        if not request.prompt_token_ids:
            raise RequestRefused(
                _INVALID_ARGUMENT, "prompt is empty: it needs at least one token", field="prompt"
            )
        if len(self._ledger) >= self._limits.max_num_requests:
            raise RequestRefused(
                _RESOURCE_EXHAUSTED,
                f"{len(self._ledger)} requests are live, max_num_requests={self._limits.max_num_requests}",
                retry_after_ms=1000,
            )
        if self._ledger.find(request.owner, request.handle) is not None:
            raise RequestRefused(_ALREADY_EXISTS, f"handle={request.handle} is live", field="handle")
        if self._ledger.find_id(request.tenant, request.request_id) is not None:
            raise RequestRefused(
                _ALREADY_EXISTS, f"request_id={request.request_id!r} is live already", field="request_id"
            )

    def _enqueue_new(self, request: Request) -> None:
        leader = Sequence(request, 0)
        leader.fork_indexes = list(range(1, request.sampling.n))
        request.live_sequences = {0: leader, **dict.fromkeys(leader.fork_indexes)}
        if request.beam_params is not None:
            request.beams = BeamGroup(request, leader)
        self._enqueue(leader)

    def _enqueue_resumed(self, request: Request) -> None:
        sequences = [Sequence(request, index, tokens) for index, tokens in request.resumed]
        request.live_sequences = {sequence.index: sequence for sequence in sequences}
        for sequence in sequences:
            self._enqueue(sequence)
            outputs = sequence.output_token_ids
            if outputs and outputs[-1] in sequence.stop_token_ids:
                self._ledger.finish(sequence, FinishReason.STOP)
            elif sequence.num_known >= sequence.max_len:
                self._ledger.finish(sequence, FinishReason.LENGTH)

    def _enqueue(self, sequence: Sequence) -> None:
        sequence.order = self._policy.order(sequence)
        self._waiting.push(sequence)

    def _abort_index(self, request: Request, index: int) -> None:
        sequence = request.live_sequences[index]
        if sequence is None:
            leader = next(
                s for s in request.live_sequences.values() if s is not None and index in s.fork_indexes
            )
            _drop_fork(leader, index)
            self._ledger.finish_unforked(request, index, FinishReason.ABORT)
        elif sequence.fork_indexes:
            self._abort_leader(request, sequence)
        else:
            self._ledger.finish(sequence, FinishReason.ABORT)

    def _abort_leader(self, request: Request, leader: Sequence) -> None:
        """The others still need the prompt that the leader computes: it goes on under the index of the next.

        A worker knows an admitted leader by its index, so one that runs is admitted again; its blocks are cached.
        """
        aborted, heir = leader.index, leader.fork_indexes[0]
        _drop_fork(leader, heir)
        request.live_sequences[heir] = leader
        leader.index = heir
        if leader.group is not None:
            leader.group.leave(leader, Status.WAITING)
            self._waiting.push(leader)
        self._ledger.finish_unforked(request, aborted, FinishReason.ABORT)

    def _void(self, group: Group, *, from_step_id: int = 0, everything: bool = False) -> None:
        """Steps did not happen: their sequences wait again with the tokens that are confirmed."""
        voided = group.void_steps(from_step_id)
        culprits = unique_sequences(voided[-1:])
        affected = unique_sequences(voided)
        for sequence in [*group.running] if everything else affected:
            if sequence.status is Status.RUNNING:
                put_back(group, sequence, self._waiting)
        for sequence in affected:
            if sequence.status is Status.WAITING:
                sequence.num_known = sequence.num_confirmed
        for request in {id(sequence.request): sequence.request for sequence in culprits}.values():
            if request.live_sequences:
                self._count_failure(request, voided[-1])

    def _count_failure(self, request: Request, step: Step) -> None:
        """A request that every step fails with must not bring its workers down for ever."""
        num_tokens = request.num_generated_tokens
        if num_tokens != request.num_tokens_at_failure:
            request.num_failures = 0
        request.num_tokens_at_failure = num_tokens
        request.num_failures += 1
        if request.num_failures >= self._limits.max_failures:
            self._ledger.fail(
                request,
                _INTERNAL,
                f"{request.num_failures} steps failed in a row while this request ran, the last being {step.step_id}",
            )


def _drop_fork(leader: Sequence, index: int) -> None:
    leader.fork_indexes.remove(index)
    if leader.fork_slots:
        assert leader.group is not None, "slots are held by a running leader"
        leader.group.free_slots.append(leader.fork_slots.pop())


def _kv_waste_ratio(groups: list[Group]) -> float:
    """Share of the token places in used blocks that hold no token; a shared tail counts once."""
    num_places = num_wasted = 0
    for group in groups:
        block_size = group.capacity.block_size
        num_places += group.kv.pool.num_used * block_size
        wasted_in_tail: dict[int, int] = {}
        for sequence in group.running:
            for position in range(sequence.num_scheduled // block_size, len(sequence.block_table)):
                block = sequence.block_table[position]
                filled = max(0, sequence.num_scheduled - position * block_size)
                wasted_in_tail[block] = min(wasted_in_tail.get(block, block_size), block_size - filled)
        num_wasted += sum(wasted_in_tail.values())
    return num_wasted / num_places if num_places else 0.0
