"""What a piece of generated text turns out to be, in the order in which it was written. Knows no HTTP."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer itself, as the client shall see it."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thought before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolDelta:
    """More of one tool call. The first of an `index` carries `id` and `name`, the others neither.

    The `arguments_fragment`s of an index, joined, are the call's arguments as JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments_fragment: str = ""


OutputDelta = TextDelta | ToolDelta
