"""Protobuf requests made from their descriptors: fields at their boundaries, then bytes bent. Knows no server."""

import random
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from quire.v1 import generation_pb2, tokenizer_pb2
from tests.fuzz.value import FLOATS, INTEGERS, TEXTS, TOKENS, mutated

_GENERATE = ("quire.v1.GenerationService/Generate", generation_pb2.GenerateRequest)
_METHODS: tuple[tuple[str, type[Message]], ...] = (
    _GENERATE,
    _GENERATE,
    _GENERATE,
    ("quire.v1.TokenizerService/Tokenize", tokenizer_pb2.TokenizeRequest),
    ("quire.v1.TokenizerService/Detokenize", tokenizer_pb2.DetokenizeRequest),
    ("quire.v1.TokenizerService/ApplyChatTemplate", tokenizer_pb2.ApplyChatTemplateRequest),
)
_MAX_DEPTH = 4
_RANGES = {
    Field.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    Field.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    Field.CPPTYPE_UINT32: (0, 2**32 - 1),
    Field.CPPTYPE_UINT64: (0, 2**64 - 1),
}


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """One call."""

    method: str
    raw: bytes
    is_stream: bool
    about: str


class GrpcCases:
    """An endless source of calls."""

    def __init__(self, model: str, draw: random.Random) -> None:
        self._model = model
        self._draw = draw

    def next(self) -> GrpcCase:
        """One more."""
        method, message_type = self._draw.choice(_METHODS)
        message = message_type()
        self._fill(message, 0, share=self._draw.choice((0.05, 0.15, 0.5)))
        if self._draw.random() < 0.9:
            message.MergeFrom(message_type(model=self._draw.choice((self._model, ""))))
        if isinstance(message, generation_pb2.GenerateRequest):
            self._tame(message)
        raw = message.SerializeToString()
        if self._draw.random() < 0.4:
            raw = mutated(self._draw, raw)
        return GrpcCase(f"/{method}", raw, method.endswith("/Generate"), f"{method} {raw[:2000]!r}")

    def _tame(self, request: generation_pb2.GenerateRequest) -> None:
        if request.WhichOneof("prompt") is None and self._draw.random() < 0.9:
            request.text = "ROMEO:"
        if self._draw.random() < 0.85:
            request.sampling_params.max_tokens = self._draw.randint(1, 12)

    def _fill(self, message: Message, depth: int, share: float) -> None:
        for field in message.DESCRIPTOR.fields:
            if self._draw.random() < share and depth < _MAX_DEPTH:
                self._set(message, field, depth, share)

    def _set(self, message: Message, field: Field, depth: int, share: float) -> None:
        held = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            self._set_entry(held, field.message_type, depth, share)
        elif field.is_repeated:
            for _ in range(self._draw.choice((1, 1, 2, 5))):
                if field.message_type is not None:
                    self._fill(held.add(), depth + 1, share)
                else:
                    held.append(self._scalar(field))
        elif field.message_type is not None:
            held.SetInParent()
            self._fill(held, depth + 1, share)
        else:
            setattr(message, field.name, self._scalar(field))

    def _set_entry(self, held: Any, entry: Any, depth: int, share: float) -> None:
        key = self._scalar(entry.fields_by_name["key"])
        value = entry.fields_by_name["value"]
        if value.message_type is None:
            held[key] = self._scalar(value)
        else:
            self._fill(held[key], depth + 1, share)

    def _scalar(self, field: Field) -> Any:
        draw = self._draw
        if field.cpp_type in _RANGES:
            low, high = _RANGES[field.cpp_type]
            return min(high, max(low, draw.choice((*INTEGERS, *TOKENS, 1, 2, 3))))
        match field.cpp_type:
            case Field.CPPTYPE_FLOAT | Field.CPPTYPE_DOUBLE:
                return (
                    max(-3e38, min(3e38, value))
                    if abs(value := draw.choice((*FLOATS, 0.7, 0.9))) < 1e309
                    else value
                )
            case Field.CPPTYPE_BOOL:
                return draw.random() < 0.5
            case Field.CPPTYPE_ENUM:
                return draw.choice((0, 1, 2, 3, 99, -1))
            case _:
                text = draw.choice(TEXTS).encode(errors="replace")
                return text if field.type == Field.TYPE_BYTES else text.decode()
