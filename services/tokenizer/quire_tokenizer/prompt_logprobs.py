"""The log-probabilities of one prompt's tokens, gathered from the steps that computed it. Knows no stream."""

from quire.v1 import generation_pb2
from quire_tokenizer.text_codec import TextCodec

LogprobEntries = list[tuple[int, float, int]]
"""(token id, log-probability, rank) per entry of one token."""


class PromptLogprobs:
    """Grows from the prompt's second token on; nothing is known of its first."""

    def __init__(self, prompt_len: int, codec: TextCodec) -> None:
        self._prompt_len = prompt_len
        self._codec = codec
        self._tokens = [generation_pb2.TokenLogprobs()]

    @property
    def is_complete(self) -> bool:
        """Whether every token of the prompt has its entry."""
        return len(self._tokens) == self._prompt_len

    @property
    def tokens(self) -> list[generation_pb2.TokenLogprobs]:
        """One entry per token so far."""
        return self._tokens

    def receive(self, first_position: int, tokens: list[LogprobEntries]) -> bool:
        """Takes a stretch, leaving out what is known already; False when tokens are missing before it."""
        num_known = len(self._tokens)
        if first_position > num_known:
            return False
        for entries in tokens[num_known - first_position :]:
            self._tokens.append(token_logprobs(entries, self._codec))
        return True


def token_logprobs(entries: LogprobEntries, codec: TextCodec) -> generation_pb2.TokenLogprobs:
    """The entries as they travel to a client, with the text of each token."""
    return generation_pb2.TokenLogprobs(
        entries=[
            generation_pb2.TokenLogprob(
                token_id=token_id, logprob=logprob, rank=rank, text=codec.token_text(token_id)
            )
            for token_id, logprob, rank in entries
        ]
    )
