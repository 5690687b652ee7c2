"""Invariants of the core over any order of add, resume, abort, step, answer, fail, reset and change of groups."""

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quire_scheduler.core import (
    BeamParams,
    CoreLimits,
    FinishReason,
    GroupCapacity,
    OwnerId,
    Request,
    Sampling,
    Scheduler,
    StaleAnswer,
)
from quire_scheduler.core.beam_search import EarlyStopping, Hypothesis

from quire.wire.plan import StepPlan
from quire.wire.result import StepResult
from tests.doubles.simulated_worker import SimulatedWorker, expected_beams, expected_tokens

VOCAB_SIZE = 50
STOPS = (7, 8)
BLOCK_SIZE = 4
OWNERS = (OwnerId(1), OwnerId(2))
PROMPTS = st.one_of(
    st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
    st.integers(1, 22).map(lambda length: [3] * length),
)


class _Workers:
    """One group's workers, as far behind their scheduler as the machine lets them be."""

    def __init__(self, capacity: GroupCapacity, epoch: int) -> None:
        self.epoch = epoch
        self.sent: list[StepPlan] = []
        self.old_results: list[StepResult] = []
        self.simulated = SimulatedWorker(
            num_blocks=capacity.num_blocks,
            block_size=capacity.block_size,
            max_num_seqs=capacity.max_num_seqs,
            vocab_size=capacity.vocab_size,
        )

    def begin(self, epoch: int) -> None:
        self.epoch = epoch
        self.sent.clear()
        self.simulated.drop_slots()


class CoreMachine(RuleBasedStateMachine):
    """Drives one or two groups with workers that lag behind by up to the pipeline's depth."""

    @initialize(
        num_groups=st.integers(1, 2),
        num_blocks=st.integers(8, 24),
        max_num_seqs=st.integers(2, 6),
        spare_budget=st.integers(0, 12),
        depth=st.integers(1, 3),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
        prefill_cap=st.one_of(st.none(), st.integers(1, 8)),
    )
    def build(
        self,
        num_groups: int,
        num_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        depth: int,
        caching: bool,
        policy: str,
        prefill_cap: int | None,
    ) -> None:
        self.limits = CoreLimits(
            policy=policy,
            enable_prefix_caching=caching,
            pipeline_depth=depth,
            max_failures=3,
            max_num_prefill_tokens_while_decoding=prefill_cap,
        )
        self.core = Scheduler(self.limits)
        self.capacity = GroupCapacity(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_model_len=num_blocks * BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
        )
        self.epoch = 1
        self.num_looks = 0
        self.groups = {group_id: _Workers(self.capacity, self.epoch) for group_id in range(num_groups)}
        for group_id in self.groups:
            self.core.add_group(group_id, self.epoch, self.capacity)
        self.requests: dict[int, Request] = {}
        self.received: dict[tuple[int, int], list[int]] = {}
        self.ends: Counter[tuple[int, int]] = Counter()
        self.reasons: dict[tuple[int, int], FinishReason] = {}
        self.failed: Counter[int] = Counter()
        self.beams: dict[int, list[Hypothesis]] = {}
        self.whole: dict[tuple[int, int], tuple[float, float]] = {}
        """(log-probability, score) of each hypothesis of a beam search."""

    @rule(
        prompt=PROMPTS,
        max_tokens=st.one_of(st.integers(1, 10), st.just(32)),
        n=st.integers(1, 3),
        min_tokens=st.integers(0, 2),
        priority=st.integers(0, 2),
        seed=st.integers(0, 1000),
    )
    def add(
        self, prompt: list[int], max_tokens: int, n: int, min_tokens: int, priority: int, seed: int
    ) -> None:
        request = self._request(prompt, max_tokens, n, min_tokens, priority, seed)
        if request is not None:
            self.core.add(request)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 12),
        beam_width=st.integers(1, 4),
        length_penalty=st.sampled_from([0.0, 1.0, 2.0]),
        early_stopping=st.sampled_from([False, True, "never"]),
        priority=st.integers(0, 2),
    )
    def add_beam_search(
        self,
        prompt: list[int],
        max_tokens: int,
        beam_width: int,
        length_penalty: float,
        early_stopping: EarlyStopping,
        priority: int,
    ) -> None:
        request = self._request(prompt, max_tokens, beam_width, 0, priority, seed=0)
        if request is not None:
            request.beam_params = BeamParams(
                beam_width=request.sampling.n, length_penalty=length_penalty, early_stopping=early_stopping
            )
            request.sampling = replace(request.sampling, eos_token_ids=frozenset(STOPS))
            self.core.add(request)

    @rule(
        prompt=PROMPTS,
        max_tokens=st.integers(1, 10),
        num_had=st.lists(st.integers(0, 10), min_size=1, max_size=3),
        priority=st.integers(0, 2),
    )
    def resume(self, prompt: list[int], max_tokens: int, num_had: list[int], priority: int) -> None:
        max_tokens = min(max_tokens, self.capacity.max_model_len - len(prompt))
        request = self._request(prompt, max_tokens, len(num_had), 0, priority, seed=5)
        if request is None:
            return
        indexes = range(request.sampling.n)
        had = [(index, self._truth(request, index)[: num_had[index]]) for index in indexes]
        request.resumed = tuple(had)
        self.received.update({(request.handle, index): list(tokens) for index, tokens in had})
        self.core.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.one_of(st.none(), st.integers(0, 2)))
        code = data.draw(st.sampled_from([0, 0, 4]))
        self.core.abort(self.requests[handle].owner, handle, index, code=code, message="told to")

    @rule(at=st.integers(0, 1), first=st.booleans())
    def abort_in_prefill(self, at: int, first: bool) -> None:
        """A sequence of a request whose prompt is not computed yet: the leader, or one to be forked from it."""
        for sequence in self.core._groups[at % len(self.groups)].prefilling:
            if sequence.fork_indexes:
                index = sequence.index if first else sequence.fork_indexes[-1]
                assert self.core.abort(sequence.request.owner, sequence.request.handle, index)
                return

    @rule(owner=st.sampled_from(OWNERS))
    def abort_owner(self, owner: OwnerId) -> None:
        self.core.abort_owner(owner)
        assert self.core.num_requests_of(owner) == 0

    @rule(at=st.integers(0, 1))
    def plan(self, at: int) -> None:
        self._plan(at % len(self.groups))

    @rule(at=st.integers(0, 1))
    def answer(self, at: int) -> None:
        self._answer(at % len(self.groups))

    @rule()
    def settle(self) -> None:
        self.core.settle()

    @rule(at=st.integers(0, 1), num_steps=st.integers(1, 8))
    def run_full_pipeline(self, at: int, num_steps: int) -> None:
        for _ in range(num_steps):
            while self._plan(at % len(self.groups)):
                pass
            self._answer(at % len(self.groups))
            self.collect_events()

    @rule(at=st.integers(0, 1))
    def repeat_answer(self, at: int) -> None:
        workers = self.groups[at % len(self.groups)]
        for result in workers.old_results[-1:]:
            try:
                self.core.apply(result)
            except StaleAnswer:
                continue
            raise AssertionError("an old answer was entered twice")

    @rule(at=st.integers(0, 1), data=st.data())
    def fail(self, at: int, data: st.DataObject) -> None:
        group_id = at % len(self.groups)
        sent = self.groups[group_id].sent
        if sent:
            first = data.draw(st.integers(0, len(sent) - 1))
            self.core.fail(group_id, sent[first].step_id)
            del sent[first:]

    @rule(at=st.integers(0, 1))
    def reset(self, at: int) -> None:
        group_id = at % len(self.groups)
        self.groups[group_id].begin(self._next_epoch())
        self.core.reset(group_id, self.epoch)

    @rule(at=st.integers(0, 1))
    def replace_group(self, at: int) -> None:
        group_id = at % len(self.groups)
        self.groups[group_id].begin(self._next_epoch())
        self.core.remove_group(group_id)
        self.core.add_group(group_id, self.epoch, self.capacity)

    @invariant()
    def collect_events(self) -> None:
        if not hasattr(self, "core"):
            return
        for owner, events in self.core.drain_events().items():
            at = 0
            for handle, index, first, count in zip(
                events.handles, events.indexes, events.first_token_indexes, events.num_tokens, strict=True
            ):
                assert self.requests[handle].owner == owner
                got = self.received.setdefault((handle, index), [])
                assert first == len(got), "a token was repeated or is missing"
                assert not self.ends[handle, index] and not self.failed[handle], "an event after the end"
                assert not count or (handle, index) not in self.whole, "a hypothesis came in parts"
                got += events.token_ids[at : at + count]
                at += count
            assert at == len(events.token_ids)
            for row, logprob, score in zip(
                events.beam_rows, events.beam_logprobs, events.beam_scores, strict=True
            ):
                self.whole[events.handles[row], events.indexes[row]] = (logprob, score)
            for row, reason in zip(events.finished_rows, events.finish_reasons, strict=True):
                key = (events.handles[row], events.indexes[row])
                self.ends[key] += 1
                self.reasons[key] = reason
            for failure in events.failures:
                self.failed[failure.handle] += 1
        assert max(self.ends.values(), default=0) <= 1, "a sequence ended twice"
        assert max(self.failed.values(), default=0) <= 1, "a request failed twice"
        self._check_texts()

    @invariant()
    def blocks_and_slots_are_conserved(self) -> None:
        if not hasattr(self, "core"):
            return
        self.num_looks += 1
        if self.num_looks % 3:
            return  # to look is to settle: in between, names and counts of blocks are left
        stats = self.core.stats()
        assert (
            stats.num_free_blocks + stats.num_used_blocks + stats.num_cached_blocks == stats.num_total_blocks
        )
        assert 0.0 <= stats.kv_waste_ratio <= 1.0
        for group_id in self.groups:
            self._check_blocks(group_id)
            self._check_slots(group_id)

    @invariant()
    def waiting_is_counted(self) -> None:
        if not hasattr(self, "core"):
            return
        live = [
            sequence
            for owner in OWNERS
            for handle in self.requests
            if (request := self.core._ledger.find(owner, handle)) is not None
            for sequence in request.live_sequences.values()
            if sequence is not None
        ]
        running = [sequence for group_id in self.groups for sequence in self.core._groups[group_id].running]
        waiting = [sequence for sequence in live if sequence not in running]
        assert len(self.core._waiting) == len(waiting)
        assert self.core._waiting.num_prompt_tokens == sum(sequence.num_prompt for sequence in waiting)

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self._run_to_the_end()
        for handle, request in self.requests.items():
            ends = [self.ends[handle, index] for index in range(request.sampling.n)]
            if self.failed[handle]:
                assert self.failed[handle] == 1 and max(ends) <= 1 and min(ends) == 0
            else:
                assert ends == [1] * request.sampling.n, f"request {handle} ended {ends} times"
        stats = self.core.stats()
        left = (stats.num_running, stats.num_waiting, stats.num_requests, stats.num_used_blocks)
        assert left == (0, 0, 0, 0)

    def _request(
        self, prompt: list[int], max_tokens: int, n: int, min_tokens: int, priority: int, seed: int
    ) -> Request | None:
        if not 0 < max_tokens <= self.capacity.max_model_len:
            return None
        handle = len(self.requests) + 1
        request = Request(
            owner=OWNERS[handle % 2],
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=prompt,
            priority=priority,
            sampling=Sampling(
                n=min(n, self.capacity.max_num_seqs),
                seed=seed,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop_token_ids=STOPS,
                eos_token_ids=frozenset({7}),
            ),
        )
        self.requests[handle] = request
        return request

    def _next_epoch(self) -> int:
        self.epoch += 1
        return self.epoch

    def _plan(self, group_id: int) -> bool:
        plan = self.core.schedule(group_id)
        if plan is None:
            return False
        sent = self.groups[group_id].sent
        assert plan.num_tokens <= self.capacity.max_num_batched_tokens
        assert not sent or plan.step_id == sent[-1].step_id + 1
        sent.append(plan)
        assert len(sent) == self.core.num_in_flight(group_id) <= self.limits.pipeline_depth
        return True

    def _answer(self, group_id: int) -> None:
        workers = self.groups[group_id]
        if workers.sent:
            result = workers.simulated.execute(workers.sent.pop(0))
            self.core.apply(result)
            workers.old_results.append(result)

    def _check_blocks(self, group_id: int) -> None:
        """Every block is free, cached or held, and held exactly as often as it stands in a table."""
        group = self.core._groups[group_id]
        pool = group.kv.pool
        group.kv.settle()
        held = Counter(block for sequence in group.running for block in sequence.block_table)
        everywhere = Counter([*pool._free, *pool._cached, *held.keys()])
        assert everywhere == Counter(range(1, self.capacity.num_blocks + 1))
        for block in everywhere:
            assert pool.num_holders(block) == held[block], f"block {block} is miscounted"
        assert pool.num_used == len(held)

    def _check_slots(self, group_id: int) -> None:
        group = self.core._groups[group_id]
        slots = [s.slot for s in group.running] + [slot for s in group.running for slot in s.fork_slots]
        assert sorted(slots + group.free_slots) == list(range(self.capacity.max_num_seqs))
        assert [s.order for s in group.running] == sorted(s.order for s in group.running)

    def _run_to_the_end(self) -> None:
        """Every request ends within its bound of steps now that no other comes."""
        bounds = self._bounds()
        live = {handle for handle in bounds if self._is_live(handle)}
        step = 0
        while live or self._has_sent():
            step += 1
            for group_id in self.groups:
                self._plan(group_id)
                self._answer(group_id)
            self.collect_events()
            self.blocks_and_slots_are_conserved()
            live = {handle for handle in live if self._is_live(handle)}
            late = [handle for handle in live if step > bounds[handle]]
            assert not late, f"requests {late} live on after {step} steps"

    def _bounds(self) -> dict[int, int]:
        """Steps within which each request must have ended.

        The best live sequence gets at least one token in every step, but for those in which rows of an earlier run
        are still to be answered: it is served alone in the worst case, and computes its prompt and what it had once
        more. Under first come, first served only earlier requests can be before it.
        """
        costs: dict[int, int] = {}
        for handle, request in self.requests.items():
            sampling = request.sampling
            num_steps = len(request.prompt_token_ids) + 2 * sampling.max_tokens
            lag = 2 * (self.limits.pipeline_depth + 1)
            cost = sampling.n * (num_steps + lag)
            if (
                request.beam_params is not None
            ):  # all beams at once, each step after the answer to the one before
                cost = len(request.prompt_token_ids) + lag * (1 + sampling.max_tokens)
            costs[handle] = cost if self._is_live(handle) else 0
        if self.limits.policy == "priority":
            return dict.fromkeys(costs, sum(costs.values()))
        return {handle: sum(costs[each] for each in costs if each <= handle) for handle in costs}

    def _is_live(self, handle: int) -> bool:
        return self.core.is_live(self.requests[handle].owner, handle)

    def _has_sent(self) -> bool:
        return any(workers.sent for workers in self.groups.values())

    def _truth(self, request: Request, index: int) -> list[int]:
        sampling = request.sampling
        return expected_tokens(
            request.prompt_token_ids,
            seed=sampling.seed,
            index=index,
            max_tokens=min(sampling.max_tokens, self.capacity.max_model_len - len(request.prompt_token_ids)),
            stops=frozenset(STOPS),
            vocab_size=VOCAB_SIZE,
            min_tokens=sampling.min_tokens,
        )

    def _check_texts(self) -> None:
        for (handle, index), got in self.received.items():
            if self.requests[handle].beam_params is not None:
                self._check_hypothesis(handle, index, got)
                continue
            want = self._truth(self.requests[handle], index)
            assert got == want[: len(got)], f"request {handle}/{index}: {got} is no start of {want}"
            reason = self.reasons.get((handle, index))
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert got == want
                assert (reason is FinishReason.STOP) == (want[-1] in STOPS)

    def _check_hypothesis(self, handle: int, index: int, got: list[int]) -> None:
        """A beam brings nothing, or all that its search was to find at its place."""
        request = self.requests[handle]
        assert request.beam_params is not None
        if (handle, index) not in self.whole:
            assert not got, "a beam was told before its end"
            return
        hypotheses = self.beams.get(handle)
        if hypotheses is None:
            room = self.capacity.max_model_len - len(request.prompt_token_ids)
            hypotheses = self.beams[handle] = expected_beams(
                request.prompt_token_ids,
                request.beam_params,
                max_tokens=min(request.sampling.max_tokens, room),
                eos=frozenset(STOPS),
                vocab_size=VOCAB_SIZE,
            )
        want = hypotheses[index]
        assert got == want.token_ids, f"beam {handle}/{index}: {got} instead of {want.token_ids}"
        assert self.whole[handle, index] == (want.cumulative_logprob, want.score)
        assert self.reasons[handle, index] is want.reason


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
