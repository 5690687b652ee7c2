"""Those who get events: numbered, and delivered to without ever being waited for."""

from typing import Protocol, cast

from quire.v1 import generation_pb2, scheduler_pb2
from quire_scheduler.core import OwnerEvents


class Owner(Protocol):
    """Somebody whose requests the core serves."""

    def deliver(self, step_id: int, events: OwnerEvents) -> None:
        """Takes what a step brought. Must return at once; a receiver that lags is its own problem."""
        ...

    def state_changed(self, state: scheduler_pb2.ServingState) -> None:
        """Takes a change of what can be served. Must return at once."""
        ...


def token_frame(step_id: int, events: OwnerEvents) -> scheduler_pb2.TokenFrame:
    """The events as they travel."""
    frame = scheduler_pb2.TokenFrame(
        step_id=step_id,
        handles=events.handles,
        indexes=events.indexes,
        first_token_indexes=events.first_token_indexes,
        num_tokens=events.num_tokens,
        token_ids=events.token_ids,
        finished_rows=events.finished_rows,
        finish_reasons=cast("list[generation_pb2.FinishReason]", events.finish_reasons),
        stop_token_ids_plus_one=events.stop_token_ids_plus_one,
        cached_handles=events.cached_handles,
        cached_tokens=events.cached_tokens,
        beam_rows=events.beam_rows,
        beam_logprobs=events.beam_logprobs,
        beam_scores=events.beam_scores,
    )
    if events.logprob_rows:
        frame.logprobs.entries_per_token.extend(events.entries_per_token())
        frame.logprobs.token_ids.extend(events.logprob_ids)
        frame.logprobs.values.extend(events.logprob_values)
        frame.logprobs.ranks.extend(events.logprob_ranks)
    if events.prompt_handles:
        frame.prompt_logprobs.handles.extend(events.prompt_handles)
        frame.prompt_logprobs.first_positions.extend(events.prompt_first_positions)
        frame.prompt_logprobs.num_tokens.extend(events.prompt_num_tokens)
        frame.prompt_logprobs.entries_per_token.extend(events.prompt_entries)
        frame.prompt_logprobs.token_ids.extend(events.prompt_logprob_ids)
        frame.prompt_logprobs.values.extend(events.prompt_logprob_values)
        frame.prompt_logprobs.ranks.extend(events.prompt_logprob_ranks)
    for failure in events.failures:
        frame.errors.add(
            handle=failure.handle,
            code=failure.code,
            message=failure.message,
            field=failure.field,
            retry_after_ms=failure.retry_after_ms,
        )
    return frame
