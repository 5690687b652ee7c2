"""RequestOutput and CompletionOutput: what a request brought, with vLLM's fields. Knows no message and no call."""

from dataclasses import dataclass


@dataclass(slots=True)
class Logprob:
    """Log-probability of one token."""

    logprob: float
    """Natural, of the raw logits."""
    rank: int | None = None
    """Among the vocabulary; 1 is the likeliest."""
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One output sequence: all of it, or with RequestOutputKind.DELTA what is new."""

    index: int
    """Which of the request's sequences, from 0."""
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    """Sum over all tokens of the sequence so far; None unless logprobs were asked for."""
    logprobs: list[dict[int, Logprob]] | None = None
    """One entry per token id, by token id, the drawn token first."""
    finish_reason: str | None = None
    """"stop", "length" or "abort"; None while it lives."""
    stop_reason: int | str | None = None
    """The stop token or the stop string that ended it; None for an end of sequence."""
    score: float | None = None
    """Of a beam search: `cumulative_logprob` over the number of tokens to the power of `length_penalty`."""

    def finished(self) -> bool:
        """Whether nothing more comes."""
        return self.finish_reason is not None


@dataclass(slots=True)
class RequestOutput:
    """What one request brought so far."""

    request_id: str
    prompt: str | None
    """The prompt's text; None where it was given as token ids."""
    prompt_token_ids: list[int] | None
    """The prompt as the model was given it; None before the first message has come."""
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    """One entry per token of the prompt, None for the first; None unless they were asked for."""
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None
    """Tokens of the prompt that the prefix cache had; None before the end."""


@dataclass(slots=True)
class BeamSearchSequence:
    """One beam, prompt and continuation together."""

    tokens: list[int]
    """The prompt's token ids, then the beam's."""
    cum_logprob: float
    """Of the beam's tokens."""
    score: float
    """`cum_logprob` over the number of the beam's tokens to the power of `length_penalty`."""
    text: str
    """Of all tokens, special ones included."""
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class BeamSearchOutput:
    """What a beam search found for one prompt."""

    sequences: list[BeamSearchSequence]
    """Best first."""
