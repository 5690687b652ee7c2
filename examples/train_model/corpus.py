"""A text file seen as training data: its two parts, and its dialogue as chat conversations.

It knows plain text only: no tokens, no tensors, no model.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HELD_OUT_SHARE = 0.1
MAX_EXCHANGES = 4  # question-and-answer pairs in one conversation
SYSTEM_MESSAGE_SHARE = 0.5

Message = dict[str, str]


@dataclass(frozen=True)
class Turn:
    """One paragraph; `speaker` is the heading that names who speaks, or empty where there is none."""

    speaker: str
    words: str


def split_text(path: Path) -> tuple[str, str]:
    """Read a UTF-8 file and return its first nine tenths, to train on, and its last tenth, held out.

    Raises ValueError if either part would be empty.
    """
    text = path.read_text(encoding="utf-8")
    boundary = int(len(text) * (1 - HELD_OUT_SHARE))
    if boundary == 0 or boundary == len(text):
        raise ValueError(
            f"text={str(path)!r} holds {len(text)} characters, too few to hold a tenth of them out"
        )
    return text[:boundary], text[boundary:]


def turns(text: str) -> list[Turn]:
    """Split a text at its blank lines; a first line such as `ROMEO:` names the speaker and is not said."""
    found: list[Turn] = []
    for paragraph in text.split("\n\n"):
        heading, _, words = paragraph.strip().partition("\n")
        if heading.endswith(":") and words:
            found.append(Turn(heading[:-1], words))
        elif paragraph.strip():
            found.append(Turn("", paragraph.strip()))
    return found


def conversations(spoken: list[Turn], rng: random.Random) -> Iterator[list[Message]]:
    """Cut consecutive turns into conversations of one to `MAX_EXCHANGES` exchanges, each turn used once.

    Turns alternate between user and assistant; a share of the conversations open with a system message that says
    who the assistant's first speaker is.
    """
    position = 0
    while position + 1 < len(spoken):
        num_turns = 2 * rng.randint(1, MAX_EXCHANGES)
        part = spoken[position : position + num_turns]
        part = part[: len(part) // 2 * 2]
        position += num_turns
        yield _system_message(part[1].speaker, rng) + [
            {"role": ("user", "assistant")[index % 2], "content": turn.words}
            for index, turn in enumerate(part)
        ]


def _system_message(speaker: str, rng: random.Random) -> list[Message]:
    if not speaker or rng.random() >= SYSTEM_MESSAGE_SHARE:
        return []
    return [{"role": "system", "content": f"You are {speaker}."}]
