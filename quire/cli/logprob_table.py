"""Log-probabilities as lines of text: one per token, with its alternatives. Knows no server."""

import json
from collections.abc import Iterable

from quire.v1 import generation_pb2


def logprob_table(heading: str, tokens: Iterable[generation_pb2.TokenLogprobs]) -> str:
    """A heading, then per token its log-probability, its rank, its text and what else was likely."""
    return "\n".join([heading, *map(_line, tokens)])


def _line(token: generation_pb2.TokenLogprobs) -> str:
    if not token.entries:
        return f"{'-':>10} {'-':>6}  the first token"
    own, *others = token.entries
    alternatives = ", ".join(f"{_text(entry)} {entry.logprob:.4f}" for entry in others)
    line = f"{own.logprob:10.4f} {own.rank:6}  {_text(own)}"
    return f"{line}  ({alternatives})" if alternatives else line


def _text(entry: generation_pb2.TokenLogprob) -> str:
    return json.dumps(entry.text, ensure_ascii=False)
