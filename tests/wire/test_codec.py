"""Plans and results survive the wire, and what is no message is refused."""

from array import array
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from quire.v1 import step_pb2
from quire.wire import PROTOCOL_VERSION
from quire.wire.codec import (
    decode_answer,
    decode_plan,
    encode_plan,
    encode_ready,
    encode_refusal,
    encode_result,
)
from quire.wire.column import FrameError
from quire.wire.plan import SlotAdmission, StepPlan
from quire.wire.result import RowFailure, StepRefusal, StepResult, WorkerReady

INT32 = st.integers(0, 2**31 - 1)


def _rows(width: int) -> st.SearchStrategy[list[int]]:
    rows = st.lists(st.lists(INT32, min_size=width, max_size=width), max_size=4)
    return rows.map(lambda lists: [value for row in lists for value in row])


ADMISSIONS = st.builds(
    SlotAdmission,
    slot=INT32,
    token_ids=st.lists(INT32, max_size=5).map(lambda token_ids: array("I", token_ids)),
    num_computed_tokens=INT32,
    prompt_len=INT32,
    sequence_index=INT32,
    temperature=st.floats(0, 2, width=32),
    top_k=INT32,
    top_p=st.floats(0, 1, width=32),
    min_p=st.floats(0, 1, width=32),
    seed=st.integers(-(2**63), 2**63 - 1),
    num_logprobs=st.integers(-1, 20),
    min_len=INT32,
    max_len=INT32,
    stop_token_ids=st.lists(INT32, max_size=3).map(tuple),
    presence_penalty=st.floats(-2, 2, width=32),
    frequency_penalty=st.floats(-2, 2, width=32),
    repetition_penalty=st.floats(0.125, 8, width=32),
    num_candidates=st.integers(0, 100),
    grammar=st.binary(max_size=6),
)
ADMISSION = SlotAdmission(
    slot=0,
    token_ids=array("I", [1, 2]),
    num_computed_tokens=0,
    prompt_len=2,
    sequence_index=0,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    seed=1,
    num_logprobs=-1,
    min_len=0,
    max_len=9,
    stop_token_ids=(),
)
PLANS = st.lists(st.tuples(INT32, INT32), max_size=5).flatmap(
    lambda rows: st.builds(
        StepPlan,
        group_id=INT32,
        epoch=st.integers(0, 2**63),
        step_id=st.integers(0, 2**63),
        traceparent=st.text(max_size=10),
        releases=st.lists(INT32, max_size=3),
        admissions=st.lists(ADMISSIONS, max_size=3),
        choices=_rows(3),
        grants=_rows(3),
        copies=_rows(5),
        forks=_rows(3),
        scheduled_slots=st.just([slot for slot, _ in rows]),
        scheduled_tokens=st.just([count for _, count in rows]),
    )
)


@given(PLANS)
def test_a_plan_survives_the_wire(plan: StepPlan) -> None:
    assert decode_plan(encode_plan(plan)) == plan


def test_failures_of_rows_survive_the_wire_and_name_rows_that_there_are() -> None:
    result = StepResult(group_id=1, epoch=2, step_id=3, num_tokens=[1, 0], token_ids=[7])
    result.failures = [RowFailure(1, "too complex", "structured_outputs")]
    assert decode_answer(encode_result(result)) == result
    result.failures = [RowFailure(2, "nobody", "")]
    with pytest.raises(FrameError, match="a failure of a row that the result does not have"):
        decode_answer(encode_result(result))


@pytest.mark.parametrize(("pairs", "joined"), [([0, 3], b"ab"), ([1, 2], b"ab"), ([0, -1, 0, 3], b"ab")])
def test_grammars_that_do_not_add_up_are_refused(pairs: list[int], joined: bytes) -> None:
    plan = StepPlan(group_id=1, epoch=2, step_id=3, scheduled_slots=[0], scheduled_tokens=[1])
    plan.admissions = [ADMISSION]
    frames = encode_plan(plan)
    header = step_pb2.StepHeader.FromString(bytes(frames[0]))
    header.tensors.add(name="grammars", type=step_pb2.TENSOR_TYPE_INT32, shape=(len(pairs) // 2, 2))
    header.tensors.add(name="grammar_bytes", type=step_pb2.TENSOR_TYPE_UINT8, shape=(len(joined),))
    packed = array("i", pairs).tobytes()
    with pytest.raises(FrameError, match="grammar"):
        decode_plan([header.SerializeToString(), *frames[1:], packed, joined])


@given(st.lists(st.booleans(), max_size=6), st.booleans())
def test_a_result_survives_the_wire(drawn: list[bool], with_logprobs: bool) -> None:
    num_tokens = sum(drawn)
    result = StepResult(
        group_id=1, epoch=2, step_id=3, num_tokens=[int(d) for d in drawn], token_ids=list(range(num_tokens))
    )
    if with_logprobs:
        result.logprob_lens = [2] * num_tokens
        result.logprob_ids = [5] * (2 * num_tokens)
        result.logprob_values = [-0.5] * (2 * num_tokens)
        result.logprob_ranks = [1] * (2 * num_tokens)
    assert decode_answer(encode_result(result)) == result


def test_refusals_and_readiness_survive_the_wire() -> None:
    refusal = StepRefusal(group_id=1, epoch=2, step_id=3, error="step 2 is missing")
    ready = WorkerReady(group_id=1, epoch=2)
    assert decode_answer(encode_refusal(refusal)) == refusal
    assert decode_answer(encode_ready(ready)) == ready


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_garbage_is_refused_and_nothing_else_happens(frames: list[bytes]) -> None:
    for decode in (decode_plan, decode_answer):
        with pytest.raises(FrameError):
            decode(frames)


def test_another_protocol_version_is_refused_naming_both() -> None:
    frames = encode_plan(StepPlan(group_id=1, epoch=1, step_id=0, scheduled_slots=[1], scheduled_tokens=[1]))
    header = step_pb2.StepHeader.FromString(bytes(frames[0]))
    header.protocol_version = 99
    with pytest.raises(FrameError, match=f"protocol version 99, this process speaks {PROTOCOL_VERSION}"):
        decode_plan([header.SerializeToString(), *frames[1:]])


def test_lengths_of_admissions_that_cancel_out_are_refused() -> None:
    plan = StepPlan(group_id=1, epoch=1, step_id=0, admissions=[ADMISSION, replace(ADMISSION, slot=2)])
    header, *columns = encode_plan(plan)
    names = [tensor.name for tensor in step_pb2.StepHeader.FromString(bytes(header)).tensors]
    at = names.index("admission_ints")
    ints = array("i", bytes(columns[at]))
    ints[1], ints[16] = 6, -2  # of the four tokens that there are
    columns[at] = ints.tobytes()
    with pytest.raises(FrameError, match="an admission of -2 tokens"):
        decode_plan([header, *columns])


def test_columns_that_do_not_add_up_are_refused() -> None:
    frames = encode_result(StepResult(group_id=1, epoch=1, step_id=0, num_tokens=[1, 1], token_ids=[4, 5]))
    with pytest.raises(FrameError, match="carries 1"):
        decode_answer(frames[:-1])
    with pytest.raises(FrameError, match="bytes"):
        decode_answer([*frames[:-1], bytes(frames[-1])[:-4]])
    lying = encode_result(StepResult(group_id=1, epoch=1, step_id=0, num_tokens=[1, 0], token_ids=[4, 5]))
    with pytest.raises(FrameError, match="does not add up"):
        decode_answer(lying)
