"""A token-level client: one Generate call, which is an owner with a single request.

Its pending deltas are merged into one per sequence while the client is slow, so that its memory is bounded by the
request's own length.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from quire.errors import QuireError, error_for_code
from quire.v1 import generation_pb2, scheduler_pb2
from quire_scheduler.core import OwnerEvents

HANDLE = 1
"""The handle of the one request."""


class TokenClient:
    """Collects the events of one request and turns them into responses."""

    def __init__(self, request_id: str, prompt_len: int, n: int) -> None:
        self._request_id = request_id
        self._usage = generation_pb2.Usage(prompt_tokens=prompt_len)
        self._num_live = n
        self._pending: dict[int, generation_pb2.CompletionDelta] = {}
        self._prompt_logprobs = [generation_pb2.TokenLogprobs()]
        """One entry per token of the prompt, of whose first nothing is known."""
        self._error: QuireError | None = None
        self._changed = asyncio.Event()

    def deliver(self, step_id: int, events: OwnerEvents) -> None:
        """Merges a step's tokens into what is pending."""
        self._take_prompt_logprobs(events)
        at = entry_at = 0
        entries = events.entries_per_token() or [0] * len(events.handles)
        for index, count, num_entries in zip(events.indexes, events.num_tokens, entries, strict=True):
            delta = self._delta(index)
            delta.token_ids.extend(events.token_ids[at : at + count])
            for _ in range(count if num_entries else 0):
                _add_logprobs(delta, events, entry_at, num_entries)
                entry_at += num_entries
            at += count
        self._usage.completion_tokens += at
        for row, logprob, score in zip(
            events.beam_rows, events.beam_logprobs, events.beam_scores, strict=True
        ):
            delta = self._delta(events.indexes[row])
            delta.cumulative_logprob, delta.score = logprob, score
        for row, reason, stop in zip(
            events.finished_rows, events.finish_reasons, events.stop_token_ids_plus_one, strict=True
        ):
            delta = self._delta(events.indexes[row])
            delta.finish_reason = cast("generation_pb2.FinishReason", reason)
            if stop:
                delta.stop_token_id = stop - 1
            self._num_live -= 1
        for num_cached in events.cached_tokens:
            self._usage.cached_tokens = num_cached
        for failure in events.failures:
            self._error = error_for_code(failure.code, failure.message, failure.field, failure.retry_after_ms)
        self._changed.set()

    def state_changed(self, state: scheduler_pb2.ServingState) -> None:
        """Nothing: the request waits for a worker like any other."""

    async def responses(self) -> AsyncIterator[scheduler_pb2.SchedulerServiceGenerateResponse]:
        """Deltas until every sequence has ended. Raises the `QuireError` that ended the request."""
        while self._num_live > 0 or self._pending:
            await self._changed.wait()
            self._changed.clear()
            if self._error is not None:
                raise self._error
            response = scheduler_pb2.SchedulerServiceGenerateResponse(
                request_id=self._request_id, outputs=self._pending.values()
            )
            self._pending.clear()
            if len(self._prompt_logprobs) > 1:
                response.prompt_logprobs.extend(self._prompt_logprobs)
                self._prompt_logprobs.clear()
            if self._num_live <= 0:
                response.usage.CopyFrom(self._usage)
            if response.outputs:
                yield response

    def _take_prompt_logprobs(self, events: OwnerEvents) -> None:
        at = 0
        for count, width in zip(events.prompt_num_tokens, events.prompt_entries, strict=True):
            for _ in range(count):
                columns = (
                    events.prompt_logprob_ids,
                    events.prompt_logprob_values,
                    events.prompt_logprob_ranks,
                )
                entries = zip(*(column[at : at + width] for column in columns), strict=True)
                token = generation_pb2.TokenLogprobs()
                for token_id, logprob, rank in entries:
                    token.entries.add(token_id=int(token_id), logprob=logprob, rank=int(rank))
                self._prompt_logprobs.append(token)
                at += width

    def _delta(self, index: int) -> generation_pb2.CompletionDelta:
        delta = self._pending.get(index)
        if delta is None:
            delta = self._pending[index] = generation_pb2.CompletionDelta(index=index)
        return delta


def _add_logprobs(
    delta: generation_pb2.CompletionDelta, events: OwnerEvents, at: int, num_entries: int
) -> None:
    token = delta.logprobs.add()
    for entry in range(at, at + num_entries):
        token.entries.add(
            token_id=events.logprob_ids[entry],
            logprob=events.logprob_values[entry],
            rank=events.logprob_ranks[entry],
        )
