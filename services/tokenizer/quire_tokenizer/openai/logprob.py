"""Log-probabilities in OpenAI's two shapes: the columns of a completion and the entries of a chat completion."""

from collections.abc import Iterable, Sequence
from typing import Any

from quire.v1 import generation_pb2
from quire_tokenizer.stream import RequestStream

_LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


def completion_columns(
    tokens: Iterable[generation_pb2.TokenLogprobs], offset: int, *, num_top: int, as_token_ids: bool
) -> tuple[dict[str, Any], int]:
    """`logprobs` of a completion whose text begins at `offset`; also the offset behind it."""
    texts: list[str] = []
    values: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for token in tokens:
        if not token.entries:  # the first token of a prompt has no probability
            continue
        drawn = token.entries[0]
        texts.append(_token_text(drawn, as_token_ids))
        values.append(_finite(drawn.logprob))
        offsets.append(offset)
        offset += len(drawn.text)
        listed = token.entries[: num_top + 1] if num_top else []
        tops.append({_token_text(entry, as_token_ids): _finite(entry.logprob) for entry in listed})
    columns = {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}
    return columns, offset


def prompt_columns(stream: RequestStream, echoed: str, *, num_top: int, as_token_ids: bool) -> dict[str, Any]:
    """`logprobs` of the prompt that an echo shows as `echoed`; nothing is known of its first token.

    A first token that the text lacks, because the tokenizer put it there, takes no room in it.
    """
    first = stream.prompt_token_ids[0]
    text = stream.codec.token_text(first)
    start = len(text) if echoed.startswith(text) else 0
    rest, _end = completion_columns(stream.prompt_logprobs, start, num_top=num_top, as_token_ids=as_token_ids)
    return {
        "tokens": [f"token_id:{first}" if as_token_ids else text, *rest["tokens"]],
        "token_logprobs": [None, *rest["token_logprobs"]],
        "top_logprobs": [None, *rest["top_logprobs"]],
        "text_offset": [0, *rest["text_offset"]],
    }


def joined_columns(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Columns of a prompt and of what follows it."""
    return {name: before[name] + after[name] for name in before}


def prompt_entries(stream: RequestStream, *, num_top: int) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token of the prompt but the first, entries by token id."""
    return [
        {
            str(entry.token_id): {
                "logprob": _finite(entry.logprob),
                "rank": entry.rank,
                "decoded_token": entry.text,
            }
            for entry in token.entries[: num_top + 1]
        }
        or None
        for token in stream.prompt_logprobs
    ]


def chat_entries(
    tokens: Sequence[generation_pb2.TokenLogprobs], *, num_top: int, as_token_ids: bool
) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat completion."""
    return [
        {
            **_chat_entry(token.entries[0], as_token_ids),
            "top_logprobs": [_chat_entry(entry, as_token_ids) for entry in token.entries[1 : num_top + 1]],
        }
        for token in tokens
        if token.entries
    ]


def _chat_entry(entry: generation_pb2.TokenLogprob, as_token_id: bool) -> dict[str, Any]:
    return {
        "token": _token_text(entry, as_token_id),
        "logprob": _finite(entry.logprob),
        "bytes": list(entry.text.encode()),
    }


def _token_text(entry: generation_pb2.TokenLogprob, as_token_id: bool) -> str:
    return f"token_id:{entry.token_id}" if as_token_id else entry.text


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
