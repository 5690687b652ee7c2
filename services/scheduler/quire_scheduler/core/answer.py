"""Enters a worker's answer: matches it to its step and turns rows into confirmed tokens, ends and events.

A row belongs to the sequence of the step's snapshot, whatever its slot holds by now. A sequence that was preempted
meanwhile keeps the token (the step ran before its blocks were granted again); one that has ended drops it.
"""

from collections.abc import Iterable

from quire.wire.result import StepResult
from quire_scheduler.core.beam_group import BeamGroup
from quire_scheduler.core.beam_search import Candidates
from quire_scheduler.core.event import MilestoneKind, OwnerEvents
from quire_scheduler.core.group import Group, Step
from quire_scheduler.core.ledger import Ledger
from quire_scheduler.core.request import FinishReason, Request, Sequence, Status
from quire_scheduler.core.stats import Counters

_INVALID_ARGUMENT = 3


class AnswerError(Exception):
    """An answer that cannot be entered as it is."""


class StaleAnswer(AnswerError):
    """An answer of an earlier epoch, or one that was entered before: drop it."""


class BrokenAnswer(AnswerError):
    """An answer that skips a step or contradicts its plan: the group must be reset."""


def apply_answer(group: Group, result: StepResult, ledger: Ledger, counters: Counters) -> None:
    """Confirms the oldest step in flight.

    Raises `StaleAnswer` with nothing changed, or `BrokenAnswer`, after which the group must be reset.
    """
    step = _matching_step(group, result)
    group.in_flight.popleft()
    _fail_rows(step, result, ledger)
    fault = (
        _enter_prompt_logprobs(step, result, ledger)
        or _enter_rows(group, step, result, ledger)
        or _enter_candidates(group, step, result, ledger, counters)
    )
    if fault:
        raise BrokenAnswer(f"step {result.step_id} of group {result.group_id}: {fault}")
    counters.num_generated_tokens += len(result.token_ids)


def _matching_step(group: Group, result: StepResult) -> Step:
    where = f"step {result.step_id}, epoch {result.epoch} of group {result.group_id}"
    if result.epoch != group.epoch:
        raise StaleAnswer(f"{where}: the group is in epoch {group.epoch}")
    if not group.in_flight or result.step_id < group.in_flight[0].step_id:
        raise StaleAnswer(f"{where}: that step is not in flight")
    step = group.in_flight[0]
    if result.step_id != step.step_id:
        raise BrokenAnswer(f"{where}: step {step.step_id} has no answer yet")
    if result.candidate_rows and not 0 <= min(result.candidate_rows) <= max(result.candidate_rows) < len(
        step.rows
    ):
        raise BrokenAnswer(f"{where}: candidates of rows {result.candidate_rows} of {len(step.rows)}")
    if len(result.num_tokens) != len(step.rows):
        raise BrokenAnswer(f"{where}: {len(result.num_tokens)} rows for a plan of {len(step.rows)}")
    for token_ids in (result.token_ids, result.candidate_ids):
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < group.capacity.vocab_size):
            raise BrokenAnswer(f"{where}: a token outside the vocabulary of {group.capacity.vocab_size}")
    return step


def _fail_rows(step: Step, result: StepResult, ledger: Ledger) -> None:
    """Ends the requests that cannot go on, each alone."""
    for failure in result.failures:
        sequence = step.rows[failure.row]
        if sequence.status is not Status.FINISHED:
            ledger.fail(sequence.request, _INVALID_ARGUMENT, failure.message, field=failure.field)


def _enter_prompt_logprobs(step: Step, result: StepResult, ledger: Ledger) -> str:
    """Hands what is new of prompts to their owners; returns what contradicts the plan, or nothing."""
    at = 0
    for row, first, count, width in zip(*[iter(result.prompt_rows)] * 4, strict=True):
        start, at = at, at + count * width
        sequence = step.rows[row]
        request = sequence.request
        if first + count > sequence.num_prompt or width != 1 + request.sampling.num_prompt_logprobs:
            return f"{sequence} brought log-probabilities that its prompt does not have"
        num_known = request.num_reported_prompt_tokens
        if sequence.status is Status.FINISHED or not first <= num_known < first + count:
            continue
        request.num_reported_prompt_tokens = first + count
        start += (num_known - first) * width
        events = ledger.events_of(request.owner)
        events.prompt_handles.append(request.handle)
        events.prompt_first_positions.append(num_known)
        events.prompt_num_tokens.append(first + count - num_known)
        events.prompt_entries.append(width)
        events.prompt_logprob_ids += result.prompt_logprob_ids[start:at]
        events.prompt_logprob_values += result.prompt_logprob_values[start:at]
        events.prompt_logprob_ranks += result.prompt_logprob_ranks[start:at]
    return ""


def _enter_rows(group: Group, step: Step, result: StepResult, ledger: Ledger) -> str:
    """Walks the rows; returns what contradicts the plan, or nothing. At a thousand rows this loop is the cost."""
    fault = ""
    token_ids = result.token_ids
    logprobs = _LogprobReader(result) if result.logprob_lens else None
    running, finished = (
        Status.RUNNING,
        Status.FINISHED,
    )  # looking up an enum's member costs as much as the rest of a row
    owner = None
    events = OwnerEvents()
    add_handle = add_index = add_first = add_num_tokens = add_token = events.handles.append
    at = 0
    for sequence, num_scheduled, count in zip(step.rows, step.num_tokens, result.num_tokens, strict=True):
        sequence.num_in_flight -= 1
        status = sequence.status
        first, at = at, at + count
        if status is finished:
            continue
        outputs = sequence.output_token_ids
        num_outputs = len(outputs)
        confirmed = sequence.num_prompt + num_outputs  # integers from 257 on are made anew each time: so once
        if status is running:
            computed = sequence.num_computed + num_scheduled
            sequence.num_computed = computed
            draws = computed == confirmed
            if draws is not (count == 1):
                if not draws or sequence.request.beams is None:
                    fault = f"{sequence} brought {count} tokens where its plan draws {int(draws)}"
                continue  # a beam brings candidates
            if computed >= sequence.next_offer_len:
                group.kv.offer_full_blocks(sequence, computed)
        elif count and sequence.num_known == confirmed:
            sequence.num_known += 1  # it waits: a later step of its last run failed, this one did not
        if not count:
            continue
        request = sequence.request
        if request.owner != owner:
            owner = request.owner
            events = ledger.events_of(owner)
            add_handle, add_index = events.handles.append, events.indexes.append
            add_first, add_num_tokens = events.first_token_indexes.append, events.num_tokens.append
            add_token = events.token_ids.append
        token = token_ids[first]
        outputs.append(token)
        add_handle(request.handle)
        add_index(sequence.index)
        add_first(num_outputs)
        add_num_tokens(1)
        add_token(token)
        if logprobs is not None:
            logprobs.copy(first, events)
        if request.traced and not request.has_answered:
            request.has_answered = True
            ledger.note(MilestoneKind.FIRST_TOKEN, request, 1)
        if token in sequence.stop_token_ids:
            is_eos = token in request.sampling.eos_token_ids
            _finish(ledger, events, sequence, FinishReason.STOP, 0 if is_eos else token + 1)
        elif sequence.num_known >= sequence.max_len and confirmed + 1 >= sequence.max_len:
            _finish(ledger, events, sequence, FinishReason.LENGTH, 0)
    return fault


def _enter_candidates(
    group: Group, step: Step, result: StepResult, ledger: Ledger, counters: Counters
) -> str:
    """Lets each beam search of the step choose; returns what contradicts the plan, or nothing."""
    if not step.beam_leaders:
        return ""
    candidates = _candidates_of(step, result)
    for leader in step.beam_leaders:
        beams = leader.request.beams
        if beams is None or leader.status is not Status.RUNNING:
            continue  # the search has ended or started over
        columns = [candidates.get(id(beam), ([], [])) for beam in beams.by_place]
        counts, num_due = [len(token_ids) for token_ids, _logprobs in columns], beams.search.num_candidates
        if any(count != num_due for count in counts):
            return f"{leader} brought {counts} candidates per beam where {num_due} are due"
        for beam in beams.by_place:
            group.kv.offer_full_blocks(beam, beam.num_computed)
        rows = [zip(token_ids, logprobs, strict=True) for token_ids, logprobs in columns]
        counters.num_generated_tokens += _choose(leader.request, beams, rows, ledger)
    return ""


def _choose(request: Request, beams: BeamGroup, rows: Iterable[Candidates], ledger: Ledger) -> int:
    """Returns how many tokens that brought."""
    if request.traced and not request.has_answered:
        request.has_answered = True
        ledger.note(MilestoneKind.FIRST_TOKEN, request, 1)
    num_beams = beams.choose(rows)
    if not num_beams:
        ledger.finish_beams(request, beams.search.hypotheses)
    return num_beams or request.sampling.n


def _candidates_of(step: Step, result: StepResult) -> dict[int, tuple[list[int], list[float]]]:
    """(tokens, log-probabilities) by the identity of their row's sequence."""
    candidates: dict[int, tuple[list[int], list[float]]] = {}
    at = 0
    for row, num in zip(result.candidate_rows, result.candidate_lens, strict=True):
        start, at = at, at + num
        candidates[id(step.rows[row])] = result.candidate_ids[start:at], result.candidate_logprobs[start:at]
    return candidates


def _finish(ledger: Ledger, events: OwnerEvents, sequence: Sequence, reason: FinishReason, stop: int) -> None:
    ledger.finish(sequence, reason, row=len(events.handles) - 1, stop=stop)


class _LogprobReader:
    """Hands the log-probability entries of single tokens to the columns of their owners."""

    def __init__(self, result: StepResult) -> None:
        self._result = result
        self._starts = [0]
        for num_entries in result.logprob_lens:
            self._starts.append(self._starts[-1] + num_entries)

    def copy(self, token_index: int, events: OwnerEvents) -> None:
        """Appends the entries of the result's token to the last row of `events`."""
        start, stop = self._starts[token_index], self._starts[token_index + 1]
        if start == stop:
            return
        events.logprob_rows.append(len(events.handles) - 1)
        events.logprob_entries.append(stop - start)
        events.logprob_ids += self._result.logprob_ids[start:stop]
        events.logprob_values += self._result.logprob_values[start:stop]
        events.logprob_ranks += self._result.logprob_ranks[start:stop]
