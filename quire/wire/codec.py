"""Plans and results as ZeroMQ frames: a protobuf header, then raw little-endian buffers (protos/quire/v1/step.proto).

Encoding is a pure function of the value. Decoding checks everything it relies on (protocol version, kinds, types,
shapes, buffer sizes, and that ragged columns add up) and raises `FrameError`, so that a garbage frame can be dropped
without touching any state. Received buffers are read in place.
"""

from collections.abc import Sequence

from google.protobuf.message import DecodeError

from quire.v1 import step_pb2
from quire.wire import PROTOCOL_VERSION
from quire.wire.admission import add_admissions, take_admissions
from quire.wire.column import Buffer, ColumnReader, ColumnWriter, FrameError
from quire.wire.plan import StepPlan
from quire.wire.result import RowFailure, StepRefusal, StepResult, WorkerReady


def encode_plan(plan: StepPlan) -> list[Buffer]:
    """Frames of a plan."""
    writer = ColumnWriter(
        _header(step_pb2.STEP_KIND_PLAN, plan.group_id, plan.epoch, plan.step_id, plan.traceparent)
    )
    writer.add("scheduled_slots", "i", plan.scheduled_slots)
    writer.add("scheduled_tokens", "i", plan.scheduled_tokens)
    writer.add("choices", "i", plan.choices, 3)
    writer.add_packed("grants", plan.grants, 3)
    writer.add("releases", "i", plan.releases)
    writer.add("copies", "i", plan.copies, 5)
    writer.add("forks", "i", plan.forks, 3)
    if plan.admissions:
        add_admissions(writer, plan.admissions)
    return writer.frames()


def decode_plan(frames: Sequence[Buffer]) -> StepPlan:
    """The plan in `frames`. Raises `FrameError`."""
    header = decode_header(frames)
    if header.kind != step_pb2.STEP_KIND_PLAN:
        raise FrameError(f"message kind {header.kind} where a plan was expected")
    reader = ColumnReader(header, frames[1:])
    plan = StepPlan(
        group_id=header.group_id,
        epoch=header.epoch,
        step_id=header.step_id,
        traceparent=header.traceparent,
        scheduled_slots=reader.take("scheduled_slots", "i"),
        scheduled_tokens=reader.take("scheduled_tokens", "i"),
        choices=reader.take("choices", "i", 3),
        grants=reader.take_packed("grants", "i", 3),
        releases=reader.take("releases", "i"),
        copies=reader.take("copies", "i", 5),
        forks=reader.take("forks", "i", 3),
        admissions=take_admissions(reader),
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
    writer = ColumnWriter(header)
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
    reader = ColumnReader(header, frames[1:])
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
