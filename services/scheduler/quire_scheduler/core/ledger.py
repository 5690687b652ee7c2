"""The live requests: who they are, how they end, and what their owners are told.

Every sequence ends in exactly one finished row or in its request's one failure; the ledger is the only place that
writes either. It knows owners and queues, but no plan.
"""

from collections import Counter
from collections.abc import Iterable

from quire_scheduler.core.beam_search import Hypothesis
from quire_scheduler.core.event import Milestone, MilestoneKind, OwnerEvents, RequestFailure
from quire_scheduler.core.request import FinishReason, OwnerId, Request, Sequence, Status, token_ids_of
from quire_scheduler.core.waiting_queue import WaitingQueue


class Ledger:
    """Live requests and their events."""

    def __init__(self, waiting: WaitingQueue) -> None:
        self._waiting = waiting
        self._by_handle: dict[tuple[OwnerId, int], Request] = {}
        self._by_id: dict[tuple[str, str], Request] = {}
        self._num_by_owner: Counter[OwnerId] = Counter()
        self._events: dict[OwnerId, OwnerEvents] = {}
        self._milestones: list[Milestone] = []
        self.now = 0.0
        """The caller's clock at its last call, for milestones."""

    def __len__(self) -> int:
        return len(self._by_handle)

    def requests(self) -> Iterable[Request]:
        """Live requests, oldest first."""
        return self._by_handle.values()

    def num_requests_of(self, owner: OwnerId) -> int:
        """Live requests of an owner."""
        return self._num_by_owner[owner]

    def find(self, owner: OwnerId, handle: int) -> Request | None:
        """The live request that its owner calls `handle`."""
        return self._by_handle.get((owner, handle))

    def find_id(self, tenant: str, request_id: str) -> Request | None:
        """The live request of that id."""
        return self._by_id.get((tenant, request_id))

    def open(self, request: Request) -> None:
        """Enters a new request; its handle and id must be free."""
        assert (request.owner, request.handle) not in self._by_handle, f"handle {request.handle} is live"
        self._by_handle[request.owner, request.handle] = request
        self._by_id[request.tenant, request.request_id] = request
        self._num_by_owner[request.owner] += 1

    def events_of(self, owner: OwnerId) -> OwnerEvents:
        """The owner's columns since the last drain."""
        events = self._events.get(owner)
        if events is None:
            events = self._events[owner] = OwnerEvents()
        return events

    def drain_events(self) -> dict[OwnerId, OwnerEvents]:
        """Takes all columns."""
        events, self._events = self._events, {}
        return events

    def drain_milestones(self) -> list[Milestone]:
        """Takes all milestones."""
        milestones, self._milestones = self._milestones, []
        return milestones

    def note(self, kind: MilestoneKind, request: Request, num_tokens: int) -> None:
        """Records a milestone of a traced request."""
        if request.traced:
            self._milestones.append(Milestone(kind, request, num_tokens, self.now))

    def note_cached_tokens(self, sequence: Sequence) -> None:
        """Tells the owner, once per request, how much of the prompt the prefix cache had."""
        request = sequence.request
        if not request.reported_cached_tokens:
            request.reported_cached_tokens = True
            num_cached = min(sequence.num_computed, sequence.num_prompt)
            events = self.events_of(request.owner)
            events.cached_handles.append(request.handle)
            events.cached_tokens.append(num_cached)
            self.note(MilestoneKind.SCHEDULED, request, num_cached)

    def finish(
        self, sequence: Sequence, reason: FinishReason, *, row: int | None = None, stop: int = 0
    ) -> None:
        """Ends a sequence: its slot and blocks are free at once.

        `row` is the row of the owner's columns that brought its last token; without it a row of its own is added.
        `stop` is the stop token plus one.
        """
        events = self.events_of(sequence.request.owner)
        if row is None:
            row = self._add_empty_row(
                events, sequence.request, sequence.index, len(sequence.output_token_ids)
            )
        self._mark_finished(events, row, reason, stop)
        self._retire(sequence)
        self._drop_index(sequence.request, sequence.index)

    def finish_beams(self, request: Request, hypotheses: list[Hypothesis]) -> None:
        """Ends a beam search: sequence i of the request has been hypothesis i, and all its tokens are told at once."""
        events = self.events_of(request.owner)
        for index, hypothesis in enumerate(hypotheses):
            row = self._add_empty_row(events, request, index, 0)
            events.num_tokens[row] = len(hypothesis.token_ids)
            events.token_ids += hypothesis.token_ids
            events.beam_rows.append(row)
            events.beam_logprobs.append(hypothesis.cumulative_logprob)
            events.beam_scores.append(hypothesis.score)
            sequence = request.live_sequences[index]
            if sequence is None:
                self._mark_finished(events, row, hypothesis.reason, 0)
                request.num_ended_tokens += len(hypothesis.token_ids)
                self._drop_index(request, index)
            else:
                sequence.output_token_ids = token_ids_of(hypothesis.token_ids)
                self.finish(sequence, hypothesis.reason, row=row)

    def abort_beams(self, request: Request) -> None:
        """Ends a beam search of which nothing was told."""
        for index, sequence in list(request.live_sequences.items()):
            if sequence is None:
                self.finish_unforked(request, index, FinishReason.ABORT)
            else:
                sequence.output_token_ids = token_ids_of(())
                self.finish(sequence, FinishReason.ABORT)

    def finish_unforked(self, request: Request, index: int, reason: FinishReason) -> None:
        """Ends a sequence that was never forked from its leader."""
        events = self.events_of(request.owner)
        self._mark_finished(events, self._add_empty_row(events, request, index, 0), reason, 0)
        self._drop_index(request, index)

    def fail(
        self, request: Request, code: int, message: str, *, field: str = "", retry_after_ms: int = 0
    ) -> None:
        """Ends a request, all its sequences at once, with an error."""
        self.events_of(request.owner).failures.append(
            RequestFailure(
                handle=request.handle, code=code, message=message, field=field, retry_after_ms=retry_after_ms
            )
        )
        for sequence in request.live_sequences.values():
            if sequence is not None:
                self._retire(sequence)
        request.live_sequences.clear()
        self._close(request)

    def _retire(self, sequence: Sequence) -> None:
        sequence.request.num_ended_tokens += len(sequence.output_token_ids)
        if sequence.status is Status.RUNNING:
            assert sequence.group is not None, f"{sequence} runs nowhere"
            sequence.group.leave(sequence, Status.FINISHED)
        else:
            self._waiting.forget(sequence)
            sequence.status = Status.FINISHED

    def _drop_index(self, request: Request, index: int) -> None:
        del request.live_sequences[index]
        if not request.live_sequences:
            self._close(request)

    def _close(self, request: Request) -> None:
        del self._by_handle[request.owner, request.handle]
        del self._by_id[request.tenant, request.request_id]
        self._num_by_owner[request.owner] -= 1
        if not self._num_by_owner[request.owner]:
            del self._num_by_owner[request.owner]
        self.note(MilestoneKind.FINISHED, request, request.num_generated_tokens)

    def _add_empty_row(self, events: OwnerEvents, request: Request, index: int, num_outputs: int) -> int:
        events.handles.append(request.handle)
        events.indexes.append(index)
        events.first_token_indexes.append(num_outputs)
        events.num_tokens.append(0)
        return len(events.handles) - 1

    def _mark_finished(self, events: OwnerEvents, row: int, reason: FinishReason, stop: int) -> None:
        events.finished_rows.append(row)
        events.finish_reasons.append(reason)
        events.stop_token_ids_plus_one.append(stop)
