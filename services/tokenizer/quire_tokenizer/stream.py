"""One request's whole truth at the front door: its prompt, its parameters, and every token received so far.

With it a request can be handed to any scheduler again. Tokens become text here, stop strings are found here, and what
the client has not taken yet is merged here into one pending message, so that a slow client costs memory only for its
own text. Knows no gRPC stream and no scheduler connection.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time_ns
from typing import cast

from quire.beam_search_params import BeamSearchParams
from quire.errors import QuireError
from quire.sampling_params import SamplingParams
from quire.v1 import generation_pb2, scheduler_pb2, tokenizer_pb2
from quire_tokenizer.pending_output import PendingOutput
from quire_tokenizer.prompt_logprobs import LogprobEntries, PromptLogprobs, token_logprobs
from quire_tokenizer.stop_checker import StopChecker
from quire_tokenizer.text_codec import TextCodec

STOP = generation_pb2.FINISH_REASON_STOP
LENGTH = generation_pb2.FINISH_REASON_LENGTH


class SequenceStream:
    """One output sequence."""

    def __init__(
        self, index: int, codec: TextCodec, params: SamplingParams, unshown_ids: frozenset[int]
    ) -> None:
        self.index = index
        self.token_ids: list[int] = []
        self.finished = False
        self.finish_reason = 0
        """Of quire.v1.FinishReason; 0 while it lives."""
        self._params = params
        self._unshown_ids = unshown_ids
        self._detokenizer = codec.detokenizer(
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self._stop = StopChecker(tuple(params.stop), include_stop=params.include_stop_str_in_output)

    def add(self, token_id: int, delta: generation_pb2.CompletionDelta) -> bool:
        """Takes one token into `delta`; True when it completed a stop string."""
        self.token_ids.append(token_id)
        delta.token_ids.append(token_id)
        if not self._params.detokenize or token_id in self._unshown_ids:
            return False
        piece = self._detokenizer.add(token_id)
        if piece:
            delta.text += self._stop.add(piece, may_stop=len(self.token_ids) > self._params.min_tokens)
        return self._finish_on_stop(delta)

    def finish(self, reason: int, stop_token_id: int | None, delta: generation_pb2.CompletionDelta) -> None:
        """Ends the sequence; text that was held back comes out, and a stop string in it still wins."""
        self.finished = True
        if self._params.detokenize:
            rest = self._detokenizer.flush()
            if rest:
                delta.text += self._stop.add(rest, may_stop=len(self.token_ids) > self._params.min_tokens)
            if self._finish_on_stop(delta):
                return
            delta.text += self._stop.flush()
        self.finish_reason = delta.finish_reason = cast("generation_pb2.FinishReason", reason)
        if stop_token_id is not None:
            delta.stop_token_id = stop_token_id

    def _finish_on_stop(self, delta: generation_pb2.CompletionDelta) -> bool:
        if self._stop.found is None:
            return False
        self.finished = True
        self.finish_reason = delta.finish_reason = STOP
        delta.stop_string = self._stop.found
        return True


class RequestStream:
    """One request, from its admission to its one terminal event."""

    def __init__(
        self,
        *,
        request_id: str,
        tenant: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        priority: int,
        codec: TextCodec,
        bad_words_token_ids: Sequence[Sequence[int]] = (),
        model: str = "",
        eos_token_ids: Iterable[int] = (),
        traceparent: str = "",
        deadline_ms: int = 0,
        beam_search: BeamSearchParams | None = None,
    ) -> None:
        self.request_id = request_id
        self.tenant = tenant
        self.model = model
        self._prompt_token_ids = prompt_token_ids
        self._params = params
        self._beam_search = beam_search
        self._priority = priority
        self._codec = codec
        self._bad_words_token_ids = bad_words_token_ids
        self._traceparent = traceparent
        self._deadline = monotonic() + deadline_ms / 1000 if deadline_ms else None
        unshown_ids = _unshown_ids(params, eos_token_ids)
        self._sequences = [SequenceStream(index, codec, params, unshown_ids) for index in range(params.n)]
        self._num_live = params.n
        self.num_cached_tokens = 0
        """Tokens of the prompt that the prefix cache had."""
        self.first_token_ns = 0
        """Unix time of its first token; 0 before."""
        self._pending = PendingOutput(params.output_kind)
        self._prompt_logprobs = (
            PromptLogprobs(len(prompt_token_ids), codec) if params.prompt_logprobs is not None else None
        )
        self._owes_prompt_logprobs = params.prompt_logprobs is not None
        self._error: QuireError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.on_change: Callable[[], None] | None = None
        """Called whenever there is something to `take`."""

    @property
    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self._num_live == 0 or self._error is not None

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """The prompt as the model is given it."""
        return self._prompt_token_ids

    @property
    def prompt_logprobs(self) -> list[generation_pb2.TokenLogprobs]:
        """One entry per token of the prompt, complete with the first output; empty when they were not asked for."""
        return self._prompt_logprobs.tokens if self._prompt_logprobs is not None else []

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self._prompt_token_ids)

    @property
    def codec(self) -> TextCodec:
        """The text side of its model."""
        return self._codec

    @property
    def num_completion_tokens(self) -> int:
        """Tokens of all its sequences, as far as they count."""
        return sum(len(sequence.token_ids) for sequence in self._sequences)

    @property
    def finish_reasons(self) -> list[int]:
        """Of each sequence; 0 for one that lives or was never ended."""
        return [sequence.finish_reason for sequence in self._sequences]

    @property
    def is_fresh(self) -> bool:
        """Whether no token has arrived yet."""
        return not any(sequence.token_ids for sequence in self._sequences)

    def admission(self, handle: int) -> scheduler_pb2.Admission:
        """The request as it stands, resumed if it has tokens already."""
        admission = scheduler_pb2.Admission(
            handle=handle,
            request_id=self.request_id,
            tenant=self.tenant,
            prompt_token_ids=self._prompt_token_ids,
            priority=self._priority,
            traceparent=self._traceparent,
            deadline_ms=self._remaining_ms(),
            bad_words_token_ids=[tokenizer_pb2.TokenIds(ids=ids) for ids in self._bad_words_token_ids],
        )
        if self._beam_search is not None:
            admission.beam_search_params.CopyFrom(self._beam_search.to_proto())
            return admission  # nothing of it comes before its end: it starts over
        admission.sampling_params.CopyFrom(self._params.to_proto())
        del admission.sampling_params.stop[:]
        del admission.sampling_params.bad_words[:]
        if self._prompt_logprobs is not None and self._prompt_logprobs.is_complete:
            admission.sampling_params.ClearField("prompt_logprobs")
        if not self.is_fresh:
            for sequence in self._sequences:
                if not sequence.finished:
                    admission.resumed.add(index=sequence.index, token_ids=sequence.token_ids)
        return admission

    def receive(self, index: int, first: int, token_ids: list[int], logprobs: list[LogprobEntries]) -> str:
        """Takes the tokens of one row.

        Returns "" when all is well, "gap" when tokens are missing before them, "stopped" when a stop string ended the
        sequence, which the scheduler must be told.
        """
        sequence = self._sequences[index]
        num_known = len(sequence.token_ids)
        if first > num_known:
            return "gap"
        if not num_known and not self.first_token_ns:
            self.first_token_ns = time_ns()
        if sequence.finished:
            return ""
        delta = self._pending.of(index)
        for number in range(num_known - first, len(token_ids)):
            stopped = sequence.add(token_ids[number], delta)
            if logprobs:
                delta.logprobs.append(token_logprobs(logprobs[number], self._codec))
            if stopped:
                self._num_live -= 1
                self._wake()
                return "stopped"
        self._wake()
        return ""

    def note_score(self, index: int, cumulative_logprob: float, score: float) -> None:
        """The sequence is a hypothesis of a beam search; called before it is finished."""
        delta = self._pending.of(index)
        delta.cumulative_logprob, delta.score = cumulative_logprob, score

    def receive_prompt_logprobs(self, first_position: int, tokens: list[LogprobEntries]) -> bool:
        """Takes those of a stretch of the prompt; False when some are missing before it."""
        return self._prompt_logprobs is None or self._prompt_logprobs.receive(first_position, tokens)

    def finish(self, index: int, reason: int, stop_token_id: int | None) -> None:
        """The scheduler ended a sequence."""
        sequence = self._sequences[index]
        if not sequence.finished:
            sequence.finish(reason, stop_token_id, self._pending.of(index))
            self._num_live -= 1
            self._wake()

    def note_cached_tokens(self, num_cached_tokens: int) -> None:
        """How much of the prompt the prefix cache had."""
        if self.is_fresh:
            self.num_cached_tokens = num_cached_tokens

    def fail(self, error: QuireError) -> None:
        """Ends the request with an error."""
        if not self.finished:
            self._error = error
            self._wake()

    async def next_response(self) -> generation_pb2.GenerateResponse | None:
        """What is to be said since the last call; None after the last message. Raises the `QuireError` that ended it."""
        while not self._pending.is_due(ended=self._num_live == 0):
            if self._error is not None:
                raise self._error
            if self._num_live == 0:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        response = generation_pb2.GenerateResponse(request_id=self.request_id, outputs=self._pending.take())
        if self._owes_prompt_logprobs:
            self._owes_prompt_logprobs = False
            response.prompt_logprobs.extend(self.prompt_logprobs)
        if self._num_live == 0:
            response.usage.prompt_tokens = len(self._prompt_token_ids)
            response.usage.completion_tokens = self.num_completion_tokens
            response.usage.cached_tokens = self.num_cached_tokens
        return response

    def take(self) -> list[generation_pb2.CompletionDelta]:
        """What is to be said now, at most one delta per sequence. Raises the `QuireError` that ended it."""
        if self._pending.is_due(ended=self._num_live == 0):
            return self._pending.take()
        if self._error is not None:
            raise self._error
        return []

    def _remaining_ms(self) -> int:
        """What is left of the deadline, at least 1; 0 without one."""
        return max(1, int((self._deadline - monotonic()) * 1000)) if self._deadline is not None else 0

    def _wake(self) -> None:
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
        if self.on_change is not None:
            self.on_change()


def _unshown_ids(params: SamplingParams, eos_token_ids: Iterable[int]) -> frozenset[int]:
    """Tokens that end a sequence. Their text is not part of it, as in vLLM, unless stops are to be included."""
    if params.include_stop_str_in_output:
        return frozenset()
    return frozenset(params.stop_token_ids).union(() if params.ignore_eos else eos_token_ids)
