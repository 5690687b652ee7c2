"""A worker without tensors: it executes plans exactly, and its texts depend on every block it was granted.

The "cache" holds, for every position, a hash chain over the tokens up to it, read back through the block table. A
table that names a wrong block, a copy that was missed or a prefix hit on content never written changes the chain and
so every token after it. `expected_tokens` gives the truth without any block.
"""

from dataclasses import dataclass, field

from quire_scheduler.core.beam_search import BeamParams, BeamSearch, Hypothesis

from quire.wire import SCRATCH_BLOCK
from quire.wire.plan import SlotAdmission, StepPlan
from quire.wire.result import StepResult

_MASK = (1 << 61) - 1


def expected_tokens(
    prompt: list[int],
    *,
    seed: int,
    index: int,
    max_tokens: int,
    stops: frozenset[int],
    vocab_size: int,
    min_tokens: int = 0,
) -> list[int]:
    """What any correct schedule generates for a prompt."""
    chain = 0
    for token in prompt:
        chain = _link(chain, token)
    outputs: list[int] = []
    while len(outputs) < max_tokens:
        may_stop = len(outputs) >= min_tokens
        token = _draw(
            chain, seed, index, len(prompt) + len(outputs), vocab_size, stops if not may_stop else frozenset()
        )
        outputs.append(token)
        if token in stops:
            break
        chain = _link(chain, token)
    return outputs


def expected_beams(
    prompt: list[int],
    params: BeamParams,
    *,
    max_tokens: int,
    eos: frozenset[int],
    vocab_size: int,
) -> list[Hypothesis]:
    """What any correct schedule of a beam search finds, best first."""
    search = BeamSearch(params, eos)
    chain = 0
    for token in prompt:
        chain = _link(chain, token)
    chains, outputs = [chain], [list[int]()]
    num = search.num_candidates
    while choices := search.choose(
        outputs, [candidates_after(each, num, vocab_size) for each in chains], max_tokens
    ):
        chains = [_link(chains[parent], token) for parent, token in choices]
        outputs = [[*outputs[parent], token] for parent, token in choices]
    return search.hypotheses


def candidates_after(chain: int, num: int, vocab_size: int) -> list[tuple[int, float]]:
    """The `num` likeliest next tokens, as a function of everything before them; exact in float32."""
    first = (_link(chain, 1) >> 20) % vocab_size
    logprobs = sorted((-((_link(chain, 2 + rank) >> 20) % 512) / 64 for rank in range(num)), reverse=True)
    return [((first + rank) % vocab_size, logprob) for rank, logprob in enumerate(logprobs)]


@dataclass
class Slot:
    """A running sequence."""

    admission: SlotAdmission
    index: int
    known: list[int]
    num_computed: int
    table: list[int] = field(default_factory=list)
    ended: bool = False

    def forked(self, index: int) -> "Slot":
        return Slot(self.admission, index, list(self.known), self.num_computed, list(self.table))


class SimulatedWorker:
    """Executes plans of one group; checks everything a real worker would rely on."""

    def __init__(self, *, num_blocks: int, block_size: int, max_num_seqs: int, vocab_size: int) -> None:
        self._num_blocks = num_blocks
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._vocab_size = vocab_size
        self._slots: dict[int, Slot] = {}
        self._chains: dict[tuple[int, int], int] = {}

    def drop_slots(self) -> None:
        """A new epoch: slots are empty, block contents are garbage."""
        self._slots.clear()
        self._chains.clear()

    def execute(self, plan: StepPlan) -> StepResult:
        """Runs one plan."""
        for slot in plan.releases:
            self._slots.pop(slot, None)
        for admission in plan.admissions:
            assert admission.slot not in self._slots, f"slot {admission.slot} admitted twice"
            assert 0 <= admission.slot < self._max_num_seqs
            self._slots[admission.slot] = Slot(
                admission, admission.sequence_index, list(admission.token_ids), admission.num_computed_tokens
            )
        self._choose(plan)
        for slot, kv_group, block in _rows(plan.grants, 3):
            assert kv_group == 0 and 1 <= block <= self._num_blocks
            self._slots[slot].table.append(block)
        self._copy(plan)
        forked_slots: list[tuple[int, int]] = []
        for parent, child, index in _rows(plan.forks, 3):
            assert child not in self._slots, f"fork into occupied slot {child}"
            self._slots[child] = self._slots[parent].forked(index)
            forked_slots.append((parent, child))
        assert len(set(plan.scheduled_slots)) == len(plan.scheduled_slots), "a slot is scheduled twice"
        return self._advance(plan, forked_slots)

    def _choose(self, plan: StepPlan) -> None:
        before = dict(self._slots)
        parents = {parent for parent, _slot, _token in _rows(plan.choices, 3)}
        for parent, slot, token in _rows(plan.choices, 3):
            assert slot == parent or slot not in parents, f"slot {slot} is overwritten and copied from"
            source = before[parent]
            assert source.num_computed == len(source.known), f"slot {parent} waits for no choice"
            self._slots[slot] = source.forked(source.index)
            self._slots[slot].known.append(token)

    def _copy(self, plan: StepPlan) -> None:
        if not plan.copies:
            return
        before = dict(self._chains)
        for slot, _kv_group, position, source, target in _rows(plan.copies, 5):
            assert self._slots[slot].table[position] == source, "a copy from a block that is not in the table"
            self._slots[slot].table[position] = target
            for offset in range(self._block_size):
                self._chains[target, offset] = before.get((source, offset), -1)

    def _advance(self, plan: StepPlan, forked_slots: list[tuple[int, int]]) -> StepResult:
        written: set[tuple[int, int]] = set()
        drawn: list[int | None] = []
        for slot, num_tokens in zip(plan.scheduled_slots, plan.scheduled_tokens, strict=True):
            assert num_tokens >= 1
            state = self._slots[slot]
            for _ in range(num_tokens):
                self._compute_one(state, written)
            drawn.append(None)
        self._check_reads(plan, {block for block, _offset in written})
        for row, slot in enumerate(plan.scheduled_slots):
            children = [child for parent, child in forked_slots if parent == slot]
            state = self._slots[slot]
            for child in children:
                self._slots[child].num_computed = state.num_computed
            drawn[row] = self._draw(state)
        drawn += [self._draw(self._slots[child]) for _parent, child in forked_slots]
        result = StepResult(
            group_id=plan.group_id,
            epoch=plan.epoch,
            step_id=plan.step_id,
            num_tokens=[int(token is not None) for token in drawn],
            token_ids=[token for token in drawn if token is not None],
        )
        for row, slot in enumerate(plan.scheduled_slots):
            self._bring_candidates(self._slots[slot], row, result)
        return result

    def _check_reads(self, plan: StepPlan, written: set[int]) -> None:
        """No row reads a place that another row of the step writes: a real one may look there before or after."""
        holders = sum(len(written.intersection(self._slots[slot].table)) for slot in plan.scheduled_slots)
        assert holders == len(written), "a row holds a block that another row of the step writes"

    def _bring_candidates(self, state: Slot, row: int, result: StepResult) -> None:
        num = state.admission.num_candidates
        if not num or state.num_computed < len(state.known):
            return
        chain = self._chain_before(state, state.num_computed)
        result.candidate_rows.append(row)
        result.candidate_lens.append(num)
        for token, logprob in candidates_after(chain, num, self._vocab_size):
            result.candidate_ids.append(token)
            result.candidate_logprobs.append(logprob)

    def _compute_one(self, state: Slot, written: set[tuple[int, int]]) -> None:
        position = state.num_computed
        state.num_computed += 1
        if state.ended:
            assert len(state.known) < state.admission.max_len, "planned past an end that could be foreseen"
            return  # writes of an ended slot go to the scratch block
        assert position < len(state.known), "a token is scheduled that the slot does not know"
        place = self._place(state, position)
        assert place not in written, f"two sequences write block {place[0]}"
        written.add(place)
        self._chains[place] = _link(self._chain_before(state, position), state.known[position])

    def _draw(self, state: Slot) -> int | None:
        if state.ended or state.num_computed < len(state.known) or state.admission.num_candidates:
            return None
        admission = state.admission
        stops = frozenset(admission.stop_token_ids)
        token = self._next_token(state, stops if len(state.known) < admission.min_len else frozenset())
        state.known.append(token)
        state.ended = token in stops or len(state.known) >= admission.max_len
        return token

    def _next_token(self, state: Slot, masked: frozenset[int]) -> int:
        """What the model would say next."""
        chain = self._chain_before(state, state.num_computed)
        return _draw(chain, state.admission.seed, state.index, len(state.known), self._vocab_size, masked)

    def _chain_before(self, state: Slot, position: int) -> int:
        return self._chains.get(self._place(state, position - 1), -1) if position else 0

    def _place(self, state: Slot, position: int) -> tuple[int, int]:
        block = state.table[position // self._block_size]
        assert block != SCRATCH_BLOCK
        return block, position % self._block_size


def _rows(flat: list[int], width: int) -> list[list[int]]:
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def _link(chain: int, token: int) -> int:
    return (chain * 6364136223846793005 + token * 1442695040888963407 + 0x9E3779B97F4A7C15) & _MASK


def _draw(chain: int, seed: int, index: int, position: int, vocab_size: int, masked: frozenset[int]) -> int:
    noise = _link(_link(_link(chain, seed), index), position)
    token = (noise >> 20) % vocab_size
    while token in masked:
        token = (token + 1) % vocab_size
    return token
