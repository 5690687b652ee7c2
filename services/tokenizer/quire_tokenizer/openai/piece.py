"""Pieces of an answer as OpenAI writes them, in an event's delta and in a whole message."""

from collections.abc import Sequence
from typing import Any

from quire_tokenizer.openai.output_reader import Piece
from quire_tokenizer.output_delta import ReasoningDelta, TextDelta


def content_of(piece: Piece) -> dict[str, Any]:
    """The delta of one event."""
    if isinstance(piece, TextDelta):
        return {"content": piece.text}
    if isinstance(piece, ReasoningDelta):
        return {"reasoning_content": piece.text}
    function: dict[str, Any] = {"arguments": piece.arguments_fragment}
    call: dict[str, Any] = {"index": piece.index, "function": function}
    if piece.id is not None:
        call |= {"id": piece.id, "type": "function"}
        function["name"] = piece.name
    return {"tool_calls": [call]}


def message_of(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The fields of a whole message: content is null where there are calls alone."""
    text = "".join(piece.text for piece in pieces if isinstance(piece, TextDelta))
    reasoning = "".join(piece.text for piece in pieces if isinstance(piece, ReasoningDelta))
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        if isinstance(piece, TextDelta | ReasoningDelta):
            continue
        call = calls.setdefault(
            piece.index,
            {"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}},
        )
        call["function"]["arguments"] += piece.arguments_fragment
    message: dict[str, Any] = {"content": text or (None if calls or reasoning else "")}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = list(calls.values())
    return message
