"""StructuredOutputsParams: the one constraint that a request's text must satisfy. Names are vLLM's.

Knows the shape of a constraint only; whether a schema, an expression or a grammar can be compiled is found by whoever
compiles it.
"""

import json as json_format
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidRequest
from quire.v1 import sampling_pb2

MAX_CONSTRAINT_BYTES = 1 << 20
"""Longest schema, expression, grammar, or list of choices, in bytes of UTF-8."""


CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object")
"""Fields of which exactly one is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasoning:
    """Free text before an answer, as the model marks it."""

    openers: tuple[str, ...]
    """Texts of which one opens it."""
    closers: tuple[str, ...]
    """Texts of which the first to come ends it."""
    begun: bool = False
    """Whether the output begins inside it, so that no opener need come. Otherwise there is none where no opener comes."""

    def __post_init__(self) -> None:
        if not self.closers or not all((*self.openers, *self.closers)):
            raise _invalid(".reasoning", repr(self), "must have closers, and no empty text")

    @classmethod
    def from_proto(cls, message: sampling_pb2.Reasoning) -> "Reasoning":
        """That of a message."""
        return cls(openers=tuple(message.openers), closers=tuple(message.closers), begun=message.begun)

    def to_proto(self) -> sampling_pb2.Reasoning:
        """The message of this."""
        return sampling_pb2.Reasoning(openers=self.openers, closers=self.closers, begun=self.begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one constraint is set. Raises `InvalidRequest` when none or several are, or when one is empty."""

    json: str | Mapping[str, Any] | bool | None = None
    """A JSON schema, as text or as what it parses to; kept as text."""
    regex: str | None = None
    """A regular expression that the whole text matches."""
    choice: Sequence[str] | None = None
    """Texts of which the output is one; kept as a tuple."""
    grammar: str | None = None
    """A context-free grammar in EBNF."""
    json_object: bool | None = None
    """True asks for any JSON object."""
    reasoning: Reasoning | None = None
    """What the model may think before; None holds the text to the constraint from its first character."""

    def __post_init__(self) -> None:
        if self.json is not None and not isinstance(self.json, str):
            object.__setattr__(self, "json", json_format.dumps(self.json, ensure_ascii=False))
        if self.choice is not None:
            object.__setattr__(self, "choice", tuple(self.choice))
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        named = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(named) != 1:
            raise _invalid("", ", ".join(named) or "none", "exactly one constraint must be set")
        self._check_content(named[0])

    @property
    def constraint(self) -> str:
        """Name of the field that is set."""
        return next(name for name in CONSTRAINTS if getattr(self, name) is not None)

    def _check_content(self, name: str) -> None:
        value = getattr(self, name)
        if name == "json_object":
            return
        texts = value if name == "choice" else (value,)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise _invalid(f".{name}", repr(value), "must hold text, and no empty one")
        num_bytes = sum(len(text.encode(errors="replace")) for text in texts)
        if num_bytes > MAX_CONSTRAINT_BYTES:
            raise _invalid(f".{name}", f"{num_bytes} bytes", f"at most {MAX_CONSTRAINT_BYTES}")

    @classmethod
    def from_proto(cls, message: sampling_pb2.StructuredOutputsParams) -> "StructuredOutputsParams":
        """The constraint of a message."""
        name = message.WhichOneof("constraint")
        if name is None:
            return cls()
        values: dict[str, Any] = {name: message.choice.texts if name == "choice" else getattr(message, name)}
        if message.HasField("reasoning"):
            values["reasoning"] = Reasoning.from_proto(message.reasoning)
        return cls(**values)

    def to_proto(self) -> sampling_pb2.StructuredOutputsParams:
        """The message of this constraint."""
        value = getattr(self, self.constraint)
        values: dict[str, Any] = {
            self.constraint: value if self.choice is None else sampling_pb2.Choice(texts=value)
        }
        if self.reasoning is not None:
            values["reasoning"] = self.reasoning.to_proto()
        return sampling_pb2.StructuredOutputsParams(**values)


def _invalid(part: str, value: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"structured_outputs{part}={value}: {rule}", field="structured_outputs")
