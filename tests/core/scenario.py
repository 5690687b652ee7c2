"""Golden scenarios: commands to the core and what it says to them, in a text file that a person can read.

A file is a sequence of paragraphs: comment lines, one command, a line of dashes, and what the core answered. Commands:

    group [blocks=] [block_size=] [max_num_seqs=] [budget=] [depth=] [policy=] [prefix_caching=] [prefill_cap=]
    add NAME prompt=FIRST..LAST max_tokens= [n=] [priority=] [stop=TOKEN]      a prompt is a range of token ids
        [beam_width=] [length_penalty=] [early_stopping=]                      of a beam search
    abort NAME [index=]
    plan · answer                    cut one plan; execute the oldest plan in flight and enter its result
    step                             plan, the block tables as the workers have them in that step, and answer
    fail · reset                     the latest plan was not executed; the group starts over in a new epoch
    state                            blocks, block tables and who waits

Sequences are called NAME/INDEX. Tokens are drawn by the simulated worker, whose draws depend on everything a real
worker would read. Knows the core's insides only to print them.
"""

from collections import Counter
from collections.abc import Iterator

from quire_scheduler.core import BeamParams, CoreLimits, OwnerEvents
from quire_scheduler.core.beam_search import EarlyStopping
from quire_scheduler.core.request import Sequence

from quire.wire.plan import StepPlan
from tests.core.driver import GROUP, CoreDriver, capacity_of

DASHES = "----"


def replay(text: str) -> str:
    """The scenario as it reads with the answers that the core gives now."""
    scenario = _Scenario()
    paragraphs: list[str] = []
    for comments, command in _commands(text):
        answer = scenario.obey(command)
        paragraphs.append("\n".join([*comments, *([command, DASHES, *answer] if command else [])]))
    return "\n\n".join(paragraphs) + "\n"


def _commands(text: str) -> Iterator[tuple[list[str], str]]:
    """(comment lines, command) of each paragraph; the command is empty where there are only comments."""
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.splitlines()
        asked = lines[: lines.index(DASHES)] if DASHES in lines else lines
        comments = [line for line in asked if line.startswith("#")]
        commands = [line for line in asked if not line.startswith("#")]
        assert len(commands) <= 1, f"one command a paragraph, found {commands}"
        yield comments, commands[0] if commands else ""


class _Scenario:
    """Obeys commands one after another."""

    def __init__(self) -> None:
        self._driver = CoreDriver(capacity_of())

    def obey(self, command: str) -> list[str]:
        if not command:
            return []
        verb, *arguments = command.split()
        names = [argument for argument in arguments if "=" not in argument]
        options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        return getattr(self, f"_{verb}")(*names, **options)

    def _group(
        self,
        *,
        blocks: str = "16",
        block_size: str = "4",
        max_num_seqs: str = "4",
        budget: str = "16",
        depth: str = "1",
        policy: str = "fcfs",
        prefix_caching: str = "yes",
        prefill_cap: str = "",
    ) -> list[str]:
        capacity = capacity_of(
            num_blocks=int(blocks),
            block_size=int(block_size),
            max_num_seqs=int(max_num_seqs),
            max_num_batched_tokens=int(budget),
        )
        limits = CoreLimits(
            policy=policy,
            enable_prefix_caching=prefix_caching == "yes",
            pipeline_depth=int(depth),
            max_num_prefill_tokens_while_decoding=int(prefill_cap) if prefill_cap else None,
        )
        self._driver = CoreDriver(capacity, limits)
        return self._state()

    def _add(
        self,
        name: str,
        *,
        prompt: str,
        max_tokens: str,
        n: str = "1",
        priority: str = "0",
        stop: str = "",
        beam_width: str = "",
        length_penalty: str = "1",
        early_stopping: str = "no",
    ) -> list[str]:
        first, last = prompt.split("..")
        stops = (int(stop),) if stop else ()
        beams = None
        if beam_width:
            stopping: dict[str, EarlyStopping] = {"no": False, "yes": True, "never": "never"}
            beams = BeamParams(
                beam_width=int(beam_width),
                length_penalty=float(length_penalty),
                early_stopping=stopping[early_stopping],
            )
        self._driver.add(
            name,
            list(range(int(first), int(last) + 1)),
            int(max_tokens),
            priority=int(priority),
            beam_params=beams,
            n=int(beam_width or n),
            stop_token_ids=stops,
            eos_token_ids=frozenset(stops),
        )
        return self._shown(self._driver.collect())

    def _abort(self, name: str, *, index: str = "") -> list[str]:
        if not self._driver.abort(name, int(index) if index else None):
            return ["it has ended"]
        return self._shown(self._driver.collect())

    def _plan(self) -> list[str]:
        plan = self._driver.plan()
        if plan is None:
            return ["no plan"]
        return [f"step {plan.step_id}", *self._changes(plan), *self._rows(plan)]

    def _step(self) -> list[str]:
        planned = self._plan()
        return planned if planned == ["no plan"] else [*planned, *self._tables(), *self._answer()[1:]]

    def _tables(self) -> list[str]:
        """Each table in short, shared blocks with the number of tables that hold them."""
        group = self._driver.core._groups[GROUP]
        held = Counter(block for sequence in group.running for block in sequence.block_table)
        lines: list[str] = []
        for sequence in group.running:
            blocks = [
                f"{block}x{held[block]}" if held[block] > 1 else str(block) for block in sequence.block_table
            ]
            lines.append(
                f"  table {_name(sequence)}: {' '.join(blocks)}, {sequence.num_scheduled} tokens written"
            )
        return [*lines, f"  blocks used: {group.kv.pool.num_used}"]

    def _answer(self) -> list[str]:
        step_id = self._driver.sent[0].step_id
        return [f"step {step_id}", *self._shown(self._driver.answer())]

    def _fail(self) -> list[str]:
        self._driver.fail()
        return self._state()

    def _reset(self) -> list[str]:
        self._driver.reset()
        return [f"epoch {self._driver.epoch}", *self._state()]

    def _state(self) -> list[str]:
        stats = self._driver.core.stats()
        running = [
            f"{_name(sequence)} in slot {sequence.slot}: blocks {_numbers(sequence.block_table)}, "
            f"{sequence.num_computed} of {sequence.num_known} tokens computed"
            for sequence in self._driver.core._groups[GROUP].running
        ]
        blocks = (
            f"{stats.num_free_blocks} free, {stats.num_used_blocks} used, {stats.num_cached_blocks} cached"
        )
        return [f"blocks: {blocks}; waiting: {stats.num_waiting}", *running]

    def _changes(self, plan: StepPlan) -> list[str]:
        """What the worker does before it computes."""
        names = self._names()
        lines = [f"  release slot {slot}" for slot in plan.releases]
        for admission in plan.admissions:
            tokens = f"{len(admission.token_ids)} tokens, {admission.num_computed_tokens} of them cached"
            lines.append(f"  admit {names[admission.slot]} into slot {admission.slot}: {tokens}")

        for parent, slot, token in _triples(plan.choices):
            source = "" if parent == slot else f", as a copy of {names[parent]}"
            lines.append(f"  {names[slot]} goes on with token {token}{source}")
        grants: dict[str, list[int]] = {}
        for slot, _, block in _triples(plan.grants):
            grants.setdefault(names[slot], []).append(block)
        lines += [f"  grant {name} blocks {_numbers(blocks)}" for name, blocks in grants.items()]
        for at in range(0, len(plan.copies), 5):
            slot, _, index, source, target = plan.copies[at : at + 5]
            lines.append(f"  copy for {names[slot]}, table entry {index}: block {source} to {target}")
        lines += [
            f"  fork {names[parent]} into slot {child} as {names[child]}"
            for parent, child, _ in _triples(plan.forks)
        ]
        return lines

    def _rows(self, plan: StepPlan) -> list[str]:
        names = self._names()
        rows = zip(plan.scheduled_slots, plan.scheduled_tokens, strict=True)
        return [f"  compute {num_tokens} of {names[slot]}" for slot, num_tokens in rows]

    def _names(self) -> dict[int, str]:
        return {sequence.slot: _name(sequence) for sequence in self._driver.core._groups[GROUP].running}

    def _shown(self, events: OwnerEvents) -> list[str]:
        names = self._driver.names
        lines: list[str] = []
        at = 0
        for handle, index, count in zip(events.handles, events.indexes, events.num_tokens, strict=True):
            tokens = events.token_ids[at : at + count]
            at += count
            lines += [f"  {names[handle]}/{index} token {token}" for token in tokens]
        for row, logprob, score in zip(
            events.beam_rows, events.beam_logprobs, events.beam_scores, strict=True
        ):
            name = f"{names[events.handles[row]]}/{events.indexes[row]}"
            lines.append(f"  {name} has log-probability {logprob:.3f} and scores {score:.3f}")
        for row, reason in zip(events.finished_rows, events.finish_reasons, strict=True):
            lines.append(f"  {names[events.handles[row]]}/{events.indexes[row]} ends: {reason.name}")
        lines += [f"  {names[failure.handle]} fails: {failure.message}" for failure in events.failures]
        return lines or ["nothing to tell"]


def _name(sequence: Sequence) -> str:
    return f"{sequence.request.request_id}/{sequence.index}"


def _triples(flat: list[int]) -> Iterator[list[int]]:
    return (flat[at : at + 3] for at in range(0, len(flat), 3))


def _numbers(values: list[int]) -> str:
    return " ".join(str(value) for value in values)
