"""Plans and results as ZeroMQ frames: a protobuf header, then raw little-endian buffers (protos/quire/v1/step.proto).

Encoding is a pure function of the value. Decoding checks everything it relies on (protocol version, kinds, types,
shapes, buffer sizes, and that ragged columns add up) and raises `FrameError`, so that a garbage frame can be dropped
without touching any state. Received buffers are read in place.
"""

import sys
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Literal, TypeVar, cast

from google.protobuf.message import DecodeError

from quire.v1 import step_pb2
from quire.wire import PROTOCOL_VERSION
from quire.wire.plan import SlotAdmission, StepPlan
from quire.wire.result import RowFailure, StepRefusal, StepResult, WorkerReady

assert sys.byteorder == "little", "the wire is little-endian and its buffers are used in place"

_TYPE_OF_CODE = {
    "i": step_pb2.TENSOR_TYPE_INT32,
    "q": step_pb2.TENSOR_TYPE_INT64,
    "f": step_pb2.TENSOR_TYPE_FLOAT32,
    "B": step_pb2.TENSOR_TYPE_UINT8,
}
_CODE_OF_TYPE = {tensor_type: code for code, tensor_type in _TYPE_OF_CODE.items()}

_ADMISSION_INTS = 15
_ADMISSION_FLOATS = 6

Buffer = bytes | bytearray | memoryview
Column = memoryview
Entry = TypeVar("Entry")


_NO_COLUMN: Column = memoryview(b"")
"""What a column that did not travel is read as: most columns of most messages."""


class FrameError(ValueError):
    """A message that is not what the step protocol allows."""


class _Writer:
    """Collects columns and their descriptors; empty columns do not travel."""

    def __init__(self, header: step_pb2.StepHeader) -> None:
        self._header = header
        self._buffers: list[Buffer] = []

    def add(self, name: str, code: str, values: Sequence[int] | Sequence[float], width: int = 1) -> None:
        if not values:
            return
        num_rows, rest = divmod(len(values), width)
        assert rest == 0, f"column {name} holds {len(values)} values in rows of {width}"
        shape = (num_rows,) if width == 1 else (num_rows, width)
        self._header.tensors.add(name=name, type=_TYPE_OF_CODE[code], shape=shape)
        self._buffers.append(array(code, values).tobytes())

    def add_token_ids(self, name: str, token_ids: "array[int]") -> None:
        """A column that is packed already, unsigned: token ids are below 2^31, so their bytes are those of int32."""
        if token_ids:
            self._header.tensors.add(name=name, type=step_pb2.TENSOR_TYPE_INT32, shape=(len(token_ids),))
            self._buffers.append(token_ids.tobytes())

    def frames(self) -> list[Buffer]:
        return [self._header.SerializeToString(), *self._buffers]


class _Reader:
    """Hands out columns by name, checked against their descriptors."""

    def __init__(self, header: step_pb2.StepHeader, buffers: Sequence[Buffer]) -> None:
        if len(buffers) != len(header.tensors):
            raise FrameError(
                f"header describes {len(header.tensors)} tensors, message carries {len(buffers)}"
            )
        self._columns: dict[str, tuple[str, int, Column]] = {}
        for descriptor, buffer in zip(header.tensors, buffers, strict=True):
            self._columns[descriptor.name] = _checked_column(descriptor, buffer)

    def take(self, name: str, code: str, width: int = 1) -> list[int]:
        return self._take(name, code, width).tolist()

    def take_bytes(self, name: str) -> bytes:
        return self._take(name, "B", 1).tobytes()

    def take_floats(self, name: str, width: int = 1) -> list[float]:
        return cast(list[float], self._take(name, "f", width).tolist())

    def _take(self, name: str, code: str, width: int) -> Column:
        found = self._columns.pop(name, None)
        if found is None:
            return _NO_COLUMN
        found_code, found_width, column = found
        if (found_code, found_width) != (code, width):
            raise FrameError(
                f"tensor {name!r} has element type {found_code!r} and {found_width} columns, "
                f"the protocol wants {code!r} and {width}"
            )
        return column

    def finish(self) -> None:
        if self._columns:
            raise FrameError(f"unknown tensors {sorted(self._columns)}")


def encode_plan(plan: StepPlan) -> list[Buffer]:
    """Frames of a plan."""
    writer = _Writer(
        _header(step_pb2.STEP_KIND_PLAN, plan.group_id, plan.epoch, plan.step_id, plan.traceparent)
    )
    writer.add("scheduled_slots", "i", plan.scheduled_slots)
    writer.add("scheduled_tokens", "i", plan.scheduled_tokens)
    writer.add("choices", "i", plan.choices, 3)
    writer.add("grants", "i", plan.grants, 3)
    writer.add("releases", "i", plan.releases)
    writer.add("copies", "i", plan.copies, 5)
    writer.add("forks", "i", plan.forks, 3)
    if plan.admissions:
        _add_admissions(writer, plan.admissions)
    return writer.frames()


def decode_plan(frames: Sequence[Buffer]) -> StepPlan:
    """The plan in `frames`. Raises `FrameError`."""
    header = decode_header(frames)
    if header.kind != step_pb2.STEP_KIND_PLAN:
        raise FrameError(f"message kind {header.kind} where a plan was expected")
    reader = _Reader(header, frames[1:])
    plan = StepPlan(
        group_id=header.group_id,
        epoch=header.epoch,
        step_id=header.step_id,
        traceparent=header.traceparent,
        scheduled_slots=reader.take("scheduled_slots", "i"),
        scheduled_tokens=reader.take("scheduled_tokens", "i"),
        choices=reader.take("choices", "i", 3),
        grants=reader.take("grants", "i", 3),
        releases=reader.take("releases", "i"),
        copies=reader.take("copies", "i", 5),
        forks=reader.take("forks", "i", 3),
        admissions=_take_admissions(reader),
    )
    reader.finish()
    if len(plan.scheduled_slots) != len(plan.scheduled_tokens):
        raise FrameError("scheduled_slots and scheduled_tokens differ in length")
    return plan


def encode_result(result: StepResult) -> list[Buffer]:
    """Frames of a result."""
    header = _header(step_pb2.STEP_KIND_RESULT, result.group_id, result.epoch, result.step_id)
    for failure in result.failures:
        header.failures.add(row=failure.row, message=failure.message, field=failure.field)
    writer = _Writer(header)
    writer.add("num_tokens", "i", result.num_tokens)
    writer.add("token_ids", "i", result.token_ids)
    writer.add("logprob_lens", "i", result.logprob_lens)
    writer.add("logprob_ids", "i", result.logprob_ids)
    writer.add("logprob_values", "f", result.logprob_values)
    writer.add("logprob_ranks", "i", result.logprob_ranks)
    writer.add("candidate_rows", "i", result.candidate_rows)
    writer.add("candidate_lens", "i", result.candidate_lens)
    writer.add("candidate_ids", "i", result.candidate_ids)
    writer.add("candidate_logprobs", "f", result.candidate_logprobs)
    writer.add("prompt_rows", "i", result.prompt_rows, 4)
    writer.add("prompt_logprob_ids", "i", result.prompt_logprob_ids)
    writer.add("prompt_logprob_values", "f", result.prompt_logprob_values)
    writer.add("prompt_logprob_ranks", "i", result.prompt_logprob_ranks)
    return writer.frames()


def encode_refusal(refusal: StepRefusal) -> list[Buffer]:
    """Frames of a refusal."""
    header = _header(step_pb2.STEP_KIND_REFUSAL, refusal.group_id, refusal.epoch, refusal.step_id)
    header.error = refusal.error
    return [header.SerializeToString()]


def encode_ready(ready: WorkerReady) -> list[Buffer]:
    """Frames of a worker's readiness."""
    return [_header(step_pb2.STEP_KIND_READY, ready.group_id, ready.epoch, 0).SerializeToString()]


def decode_answer(frames: Sequence[Buffer]) -> StepResult | StepRefusal | WorkerReady:
    """What a worker sent. Raises `FrameError`."""
    header = decode_header(frames)
    if header.kind == step_pb2.STEP_KIND_READY:
        return WorkerReady(group_id=header.group_id, epoch=header.epoch)
    if header.kind == step_pb2.STEP_KIND_REFUSAL:
        return StepRefusal(
            group_id=header.group_id, epoch=header.epoch, step_id=header.step_id, error=header.error
        )
    if header.kind != step_pb2.STEP_KIND_RESULT:
        raise FrameError(f"message kind {header.kind} where a result was expected")
    reader = _Reader(header, frames[1:])
    result = StepResult(
        group_id=header.group_id,
        epoch=header.epoch,
        step_id=header.step_id,
        num_tokens=reader.take("num_tokens", "i"),
        token_ids=reader.take("token_ids", "i"),
        logprob_lens=reader.take("logprob_lens", "i"),
        logprob_ids=reader.take("logprob_ids", "i"),
        logprob_values=reader.take_floats("logprob_values"),
        logprob_ranks=reader.take("logprob_ranks", "i"),
        failures=[RowFailure(each.row, each.message, each.field) for each in header.failures],
        candidate_rows=reader.take("candidate_rows", "i"),
        candidate_lens=reader.take("candidate_lens", "i"),
        candidate_ids=reader.take("candidate_ids", "i"),
        candidate_logprobs=reader.take_floats("candidate_logprobs"),
        prompt_rows=reader.take("prompt_rows", "i", 4),
        prompt_logprob_ids=reader.take("prompt_logprob_ids", "i"),
        prompt_logprob_values=reader.take_floats("prompt_logprob_values"),
        prompt_logprob_ranks=reader.take("prompt_logprob_ranks", "i"),
    )
    reader.finish()
    _check_result(result)
    return result


def decode_header(frames: Sequence[Buffer]) -> step_pb2.StepHeader:
    """Header of a message of this protocol version. Raises `FrameError`."""
    if not frames:
        raise FrameError("a message without frames")
    header = step_pb2.StepHeader()
    try:
        header.ParseFromString(bytes(frames[0]))
    except DecodeError as error:
        raise FrameError(f"frame 0 is no step header: {error}") from error
    if header.protocol_version != PROTOCOL_VERSION:
        raise FrameError(
            f"protocol version {header.protocol_version}, this process speaks {PROTOCOL_VERSION}"
        )
    return header


def _header(
    kind: step_pb2.StepKind, group_id: int, epoch: int, step_id: int, traceparent: str = ""
) -> step_pb2.StepHeader:
    return step_pb2.StepHeader(
        protocol_version=PROTOCOL_VERSION,
        kind=kind,
        group_id=group_id,
        epoch=epoch,
        step_id=step_id,
        traceparent=traceparent,
    )


def _checked_column(descriptor: step_pb2.TensorDescriptor, buffer: Buffer) -> tuple[str, int, Column]:
    code = _CODE_OF_TYPE.get(descriptor.type)
    if code is None:
        raise FrameError(f"tensor {descriptor.name!r} has unknown type {descriptor.type}")
    if len(descriptor.shape) not in (1, 2):
        raise FrameError(
            f"tensor {descriptor.name!r} has {len(descriptor.shape)} dimensions, at most 2 are allowed"
        )
    num_rows, width = descriptor.shape[0], (descriptor.shape[1] if len(descriptor.shape) == 2 else 1)
    raw = memoryview(buffer)
    if raw.nbytes != num_rows * width * array(code).itemsize:
        raise FrameError(
            f"tensor {descriptor.name!r} of shape {list(descriptor.shape)} has {raw.nbytes} bytes"
        )
    return code, width, _view(raw, code)


def _view(raw: memoryview, code: str) -> Column:
    """The bytes as elements, in place."""
    return raw.cast("B").cast(cast(Literal["i"], code))


def _add_admissions(writer: _Writer, admissions: Sequence[SlotAdmission]) -> None:
    ints: list[int] = []
    floats: list[float] = []
    token_ids = array("I")
    stop_token_ids: list[int] = []
    for a in admissions:
        ints += (a.slot, len(a.token_ids), a.num_computed_tokens, a.prompt_len, a.sequence_index)
        ints += (a.top_k, a.num_logprobs, a.min_len, a.max_len, len(a.stop_token_ids), 0)
        ints += (len(a.logit_bias), len(a.allowed_token_ids), len(a.bad_words), a.num_prompt_logprobs)
        floats += (a.temperature, a.top_p, a.min_p)
        floats += (a.presence_penalty, a.frequency_penalty, a.repetition_penalty)
        token_ids.extend(a.token_ids)
        stop_token_ids += a.stop_token_ids
    writer.add("admission_ints", "i", ints, _ADMISSION_INTS)
    writer.add("admission_floats", "f", floats, _ADMISSION_FLOATS)
    writer.add("admission_seeds", "q", [a.seed for a in admissions])
    writer.add_token_ids("admission_token_ids", token_ids)
    writer.add("admission_stop_token_ids", "i", stop_token_ids)
    _add_biases(writer, admissions)
    constrained = [(number, a.grammar) for number, a in enumerate(admissions) if a.grammar]
    writer.add("grammars", "i", [x for number, text in constrained for x in (number, len(text))], 2)
    writer.add("grammar_bytes", "B", b"".join(text for _number, text in constrained))
    if any(a.num_candidates for a in admissions):
        writer.add("admission_num_candidates", "i", [a.num_candidates for a in admissions])


def _add_biases(writer: _Writer, admissions: Sequence[SlotAdmission]) -> None:
    pairs = [pair for a in admissions for pair in a.logit_bias]
    words = [word for a in admissions for word in a.bad_words]
    writer.add("admission_bias_token_ids", "i", [token for token, _bias in pairs])
    writer.add("admission_biases", "f", [bias for _token, bias in pairs])
    writer.add(
        "admission_allowed_token_ids", "i", [token for a in admissions for token in a.allowed_token_ids]
    )
    writer.add("admission_bad_word_lens", "i", [len(word) for word in words])
    writer.add("admission_bad_word_token_ids", "i", [token for word in words for token in word])


def _take_admissions(reader: _Reader) -> list[SlotAdmission]:
    ints = reader.take("admission_ints", "i", _ADMISSION_INTS)
    floats = reader.take_floats("admission_floats", _ADMISSION_FLOATS)
    seeds = reader.take("admission_seeds", "q")
    token_ids = reader.take("admission_token_ids", "i")
    stop_token_ids = reader.take("admission_stop_token_ids", "i")
    num_admissions = len(seeds)
    grammars = _take_grammars(reader, num_admissions)
    num_candidates = reader.take("admission_num_candidates", "i") or [0] * num_admissions
    if len(num_candidates) != num_admissions:
        raise FrameError("admission columns differ in length")
    if len(ints) != num_admissions * _ADMISSION_INTS or len(floats) != num_admissions * _ADMISSION_FLOATS:
        raise FrameError("admission columns differ in length")
    admissions: list[SlotAdmission] = []
    biases = _BiasReader(reader)
    token_at = stop_at = 0
    for i in range(num_admissions):
        (
            slot,
            num_tokens,
            num_computed,
            prompt_len,
            index,
            top_k,
            num_logprobs,
            min_len,
            max_len,
            num_stop,
            _adapter,
            num_biases,
            num_allowed,
            num_words,
            num_prompt_logprobs,
        ) = ints[i * _ADMISSION_INTS : (i + 1) * _ADMISSION_INTS]
        temperature, top_p, min_p, presence, frequency, repetition = floats[
            i * _ADMISSION_FLOATS : (i + 1) * _ADMISSION_FLOATS
        ]
        admissions.append(
            SlotAdmission(
                slot=slot,
                token_ids=token_ids[token_at : token_at + num_tokens],
                num_computed_tokens=num_computed,
                prompt_len=prompt_len,
                sequence_index=index,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                min_p=min_p,
                seed=seeds[i],
                num_logprobs=num_logprobs,
                min_len=min_len,
                max_len=max_len,
                stop_token_ids=tuple(stop_token_ids[stop_at : stop_at + num_stop]),
                presence_penalty=presence,
                frequency_penalty=frequency,
                repetition_penalty=repetition,
                grammar=grammars.get(i, b""),
                num_candidates=num_candidates[i],
                logit_bias=biases.take_pairs(num_biases),
                allowed_token_ids=biases.take_allowed(num_allowed),
                bad_words=biases.take_words(num_words),
                num_prompt_logprobs=num_prompt_logprobs,
            )
        )
        token_at += num_tokens
        stop_at += num_stop
    if token_at != len(token_ids) or stop_at != len(stop_token_ids) or not biases.is_read:
        raise FrameError("admission token columns do not add up")
    return admissions


def _take_grammars(reader: _Reader, num_admissions: int) -> dict[int, bytes]:
    """Constraints by the number of their admission."""
    pairs, joined = reader.take("grammars", "i", 2), reader.take_bytes("grammar_bytes")
    grammars: dict[int, bytes] = {}
    at = 0
    for number, num_bytes in zip(pairs[::2], pairs[1::2], strict=True):
        if not 0 <= number < num_admissions or num_bytes < 0:
            raise FrameError(f"a grammar of {num_bytes} bytes for admission {number} of {num_admissions}")
        grammars[number] = joined[at : at + num_bytes]
        at += num_bytes
    if at != len(joined):
        raise FrameError("grammars do not add up to grammar_bytes")
    return grammars


class _BiasReader:
    """Hands the columns of biases, allowed tokens and bad words to one admission after another."""

    def __init__(self, reader: _Reader) -> None:
        token_ids = reader.take("admission_bias_token_ids", "i")
        biases = reader.take_floats("admission_biases")
        word_lens = reader.take("admission_bad_word_lens", "i")
        word_tokens = reader.take("admission_bad_word_token_ids", "i")
        if len(token_ids) != len(biases):
            raise FrameError("admission_biases and admission_bias_token_ids differ in length")
        if min(word_lens, default=1) < 1 or sum(word_lens) != len(word_tokens):
            raise FrameError("admission_bad_word_lens does not add up to admission_bad_word_token_ids")
        self._pairs = deque(zip(token_ids, biases, strict=True))
        self._allowed = deque(reader.take("admission_allowed_token_ids", "i"))
        self._word_lens = deque(word_lens)
        self._word_tokens = deque(word_tokens)

    @property
    def is_read(self) -> bool:
        """Whether nothing is left."""
        return not (self._pairs or self._allowed or self._word_lens)

    def take_pairs(self, count: int) -> tuple[tuple[int, float], ...]:
        return _taken(self._pairs, count)

    def take_allowed(self, count: int) -> tuple[int, ...]:
        return _taken(self._allowed, count)

    def take_words(self, count: int) -> tuple[tuple[int, ...], ...]:
        return tuple(_taken(self._word_tokens, length) for length in _taken(self._word_lens, count))


def _taken(column: deque[Entry], count: int) -> tuple[Entry, ...]:
    """The next entries of a column. Raises `FrameError` when it has fewer."""
    if not 0 <= count <= len(column):
        raise FrameError(f"admission columns hold {len(column)} entries where {count} are due")
    return tuple(column.popleft() for _ in range(count))


def _check_result(result: StepResult) -> None:
    if sum(result.num_tokens) != len(result.token_ids) or min(result.num_tokens, default=0) < 0:
        raise FrameError("num_tokens does not add up to token_ids")
    num_entries = len(result.logprob_ids)
    if result.logprob_lens and len(result.logprob_lens) != len(result.token_ids):
        raise FrameError("logprob_lens and token_ids differ in length")
    if sum(result.logprob_lens) != num_entries or min(result.logprob_lens, default=0) < 0:
        raise FrameError("logprob_lens does not add up to logprob_ids")
    if any(failure.row >= len(result.num_tokens) for failure in result.failures):
        raise FrameError("a failure of a row that the result does not have")
    if len(result.logprob_values) != num_entries or len(result.logprob_ranks) != num_entries:
        raise FrameError("log-probability columns differ in length")
    if len(result.candidate_rows) != len(result.candidate_lens) or min(result.candidate_lens, default=0) < 0:
        raise FrameError("candidate_rows and candidate_lens differ in length")
    if not sum(result.candidate_lens) == len(result.candidate_ids) == len(result.candidate_logprobs):
        raise FrameError("candidate_lens does not add up to the candidates")
    _check_prompt_logprobs(result)


def _check_prompt_logprobs(result: StepResult) -> None:
    num_entries = 0
    for row, first, num_tokens, entries_per_token in zip(*[iter(result.prompt_rows)] * 4, strict=True):
        if not 0 <= row < len(result.num_tokens) or first < 1 or num_tokens < 1 or entries_per_token < 1:
            raise FrameError("prompt_rows names a row, a position or a size that cannot be")
        num_entries += num_tokens * entries_per_token
    columns = (result.prompt_logprob_ids, result.prompt_logprob_values, result.prompt_logprob_ranks)
    if any(len(column) != num_entries for column in columns):
        raise FrameError("prompt_rows does not add up to the log-probability columns of prompts")
