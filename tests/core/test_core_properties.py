"""Invariants of the core over any order of add, abort, step, answer, fail and reset."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from quire_scheduler.core import (
    CoreLimits,
    FinishReason,
    GroupCapacity,
    OwnerId,
    Request,
    Sampling,
    Scheduler,
    StaleAnswer,
)

from tests.doubles.simulated_worker import SimulatedWorker, expected_tokens

VOCAB_SIZE = 50
STOPS = (7, 8)
BLOCK_SIZE = 4
OWNER = OwnerId(1)


class CoreMachine(RuleBasedStateMachine):
    """Drives one group with a worker that lags behind by up to the pipeline's depth."""

    @initialize(
        num_blocks=st.integers(8, 24),
        max_num_seqs=st.integers(2, 6),
        spare_budget=st.integers(0, 12),
        depth=st.integers(1, 3),
        caching=st.booleans(),
        policy=st.sampled_from(["fcfs", "priority"]),
    )
    def build(
        self, num_blocks: int, max_num_seqs: int, spare_budget: int, depth: int, caching: bool, policy: str
    ) -> None:
        self.core = Scheduler(
            CoreLimits(policy=policy, enable_prefix_caching=caching, pipeline_depth=depth, max_failures=3)
        )
        self.capacity = GroupCapacity(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_model_len=num_blocks * BLOCK_SIZE,
            vocab_size=VOCAB_SIZE,
        )
        self.worker = SimulatedWorker(
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_num_seqs=max_num_seqs, vocab_size=VOCAB_SIZE
        )
        self.epoch = 1
        self.core.add_group(0, self.epoch, self.capacity)
        self.sent = []
        self.old_results = []
        self.requests: dict[int, Request] = {}
        self.received: dict[tuple[int, int], list[int]] = {}
        self.ends: Counter[tuple[int, int]] = Counter()
        self.reasons: dict[tuple[int, int], FinishReason] = {}
        self.failed: Counter[int] = Counter()

    @rule(
        prompt=st.one_of(
            st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20),
            st.integers(1, 22).map(lambda length: [3] * length),
        ),
        max_tokens=st.integers(1, 10),
        n=st.integers(1, 3),
        min_tokens=st.integers(0, 2),
        priority=st.integers(0, 2),
        seed=st.integers(0, 1000),
    )
    def add(
        self, prompt: list[int], max_tokens: int, n: int, min_tokens: int, priority: int, seed: int
    ) -> None:
        n = min(n, self.capacity.max_num_seqs)
        max_tokens = min(max_tokens, self.capacity.max_model_len - len(prompt))
        if max_tokens < 1:
            return
        handle = len(self.requests) + 1
        request = Request(
            owner=OWNER,
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=prompt,
            priority=priority,
            sampling=Sampling(
                n=n,
                seed=seed,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop_token_ids=STOPS,
                eos_token_ids=frozenset({7}),
            ),
        )
        self.requests[handle] = request
        self.core.add(request)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        handle = data.draw(st.sampled_from(sorted(self.requests)))
        index = data.draw(st.one_of(st.none(), st.integers(0, 2)))
        self.core.abort(OWNER, handle, index)

    @rule()
    def plan(self) -> None:
        plan = self.core.schedule(0)
        if plan is not None:
            assert plan.num_tokens <= self.capacity.max_num_batched_tokens
            assert plan.step_id == (self.sent[-1].step_id + 1 if self.sent else plan.step_id)
            self.sent.append(plan)

    @precondition(lambda self: self.sent)
    @rule()
    def answer(self) -> None:
        result = self.worker.execute(self.sent.pop(0))
        self.core.apply(result)
        self.old_results.append(result)

    @precondition(lambda self: self.old_results)
    @rule()
    def repeat_answer(self) -> None:
        try:
            self.core.apply(self.old_results[-1])
        except StaleAnswer:
            return
        raise AssertionError("an old answer was entered twice")

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.sent) - 1))
        self.core.fail(0, self.sent[at].step_id)
        del self.sent[at:]

    @rule()
    def reset(self) -> None:
        self.epoch += 1
        self.sent.clear()
        self.worker.drop_slots()
        self.core.reset(0, self.epoch)

    @rule()
    def replace_group(self) -> None:
        self.epoch += 1
        self.sent.clear()
        self.worker.drop_slots()
        self.core.remove_group(0)
        self.core.add_group(0, self.epoch, self.capacity)

    @invariant()
    def collect_events(self) -> None:
        if not hasattr(self, "core"):
            return
        for owner, events in self.core.drain_events().items():
            assert owner == OWNER
            at = 0
            for handle, index, first, count in zip(
                events.handles, events.indexes, events.first_token_indexes, events.num_tokens, strict=True
            ):
                got = self.received.setdefault((handle, index), [])
                assert first == len(got), "a token was repeated or is missing"
                assert not self.ends[handle, index] and not self.failed[handle], "an event after the end"
                got += events.token_ids[at : at + count]
                at += count
            assert at == len(events.token_ids)
            for row, reason in zip(events.finished_rows, events.finish_reasons, strict=True):
                key = (events.handles[row], events.indexes[row])
                self.ends[key] += 1
                self.reasons[key] = reason
            for failure in events.failures:
                self.failed[failure.handle] += 1
        self._check_texts()

    @invariant()
    def blocks_are_conserved(self) -> None:
        if not hasattr(self, "core"):
            return
        stats = self.core.stats()
        assert (
            stats.num_free_blocks + stats.num_used_blocks + stats.num_cached_blocks == stats.num_total_blocks
        )
        group = self.core._groups[0]
        held = Counter(block for sequence in group.running for block in sequence.block_table)
        for block in range(1, self.capacity.num_blocks + 1):
            assert group.kv.pool.num_holders(block) == held[block], f"block {block} is miscounted"
        slots = [s.slot for s in group.running] + [slot for s in group.running for slot in s.fork_slots]
        assert sorted(slots + group.free_slots) == list(range(self.capacity.max_num_seqs))
        assert [s.order for s in group.running] == sorted(s.order for s in group.running)
        assert 0.0 <= stats.kv_waste_ratio <= 1.0

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        self._run_to_the_end()
        for handle, request in self.requests.items():
            ends = [self.ends[handle, index] for index in range(request.sampling.n)]
            if self.failed[handle]:
                assert self.failed[handle] == 1 and max(ends) <= 1
            else:
                assert ends == [1] * request.sampling.n, f"request {handle} ended {ends} times"
        stats = self.core.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_requests, stats.num_used_blocks) == (
            0,
            0,
            0,
            0,
        )

    def _run_to_the_end(self) -> None:
        """Every live request ends within the steps that serving them one after another would take."""
        bound = 10 + sum(
            request.sampling.n * (len(request.prompt_token_ids) + request.sampling.max_tokens + 6)
            for request in self.requests.values()
        )
        for _ in range(bound):
            self.plan()
            if not self.sent:
                break
            self.answer()
            self.collect_events()
            self.blocks_are_conserved()
        assert not self.sent and not self.core.has_work(0), f"work is left after {bound} steps"
        self.collect_events()

    def _check_texts(self) -> None:
        for (handle, index), got in self.received.items():
            request = self.requests[handle]
            sampling = request.sampling
            want = expected_tokens(
                request.prompt_token_ids,
                seed=sampling.seed,
                index=index,
                max_tokens=sampling.max_tokens,
                stops=frozenset(STOPS),
                vocab_size=VOCAB_SIZE,
                min_tokens=sampling.min_tokens,
            )
            assert got == want[: len(got)], f"request {handle}/{index}: {got} is no start of {want}"
            reason = self.reasons.get((handle, index))
            if reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert got == want
                assert (reason is FinishReason.STOP) == (want[-1] in STOPS)


TestCore = CoreMachine.TestCase
TestCore.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
