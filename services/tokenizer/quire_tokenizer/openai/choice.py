"""One output sequence of an answer, gathered from its deltas. Knows no endpoint."""

from dataclasses import dataclass, field

from quire.v1 import generation_pb2

_FINISH_REASONS: dict[int, str] = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_ABORT: "abort",
    generation_pb2.FINISH_REASON_ERROR: "error",
}


@dataclass(slots=True)
class Choice:
    """What came of one sequence."""

    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[generation_pb2.TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None

    def add(self, delta: generation_pb2.CompletionDelta) -> None:
        """Takes what is new."""
        self.pieces.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        if delta.finish_reason:
            self.finish_reason = finish_reason_of(delta)
            self.stop_reason = stop_reason_of(delta)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)

    @property
    def mean_logprob(self) -> float:
        """Of the tokens drawn; the higher, the likelier the text."""
        drawn = [token.entries[0].logprob for token in self.logprobs if token.entries]
        return sum(drawn) / len(drawn) if drawn else float("-inf")


def finish_reason_of(delta: generation_pb2.CompletionDelta) -> str | None:
    """OpenAI's name of why the sequence ended; None while it goes on."""
    return _FINISH_REASONS.get(delta.finish_reason)


def stop_reason_of(delta: generation_pb2.CompletionDelta) -> str | int | None:
    """The stop string or stop token that ended it, if one did."""
    which = delta.WhichOneof("stop_reason")
    return getattr(delta, which) if which else None
