"""The step loop over a real ROUTER: what it executes, refuses and drops."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from quire_worker.step_loop import Assign, Reset, StepLoop

from quire.errors import EngineError
from quire.v1 import step_pb2
from quire.wire.codec import decode_answer, encode_plan
from quire.wire.plan import NO_LOGPROBS, SlotAdmission, StepPlan
from quire.wire.result import StepRefusal, StepResult, WorkerReady
from tests.worker.tiny_model import load_tiny, make_tiny_model

_GROUP = 3
_EPOCH = 5
_TIMEOUT_MS = 20_000


class Peer:
    """The scheduler's end of the data plane, and the loop it talks to."""

    def __init__(self, socket: "zmq.Socket[bytes]", loop: StepLoop) -> None:
        self._socket = socket
        self.loop = loop

    def send(self, frames: list[Any]) -> None:
        self._socket.send_multipart([b"worker", *frames])

    def plan(self, step_id: int, *, epoch: int = _EPOCH, group_id: int = _GROUP, **parts: Any) -> None:
        self.send(encode_plan(StepPlan(group_id=group_id, epoch=epoch, step_id=step_id, **parts)))

    def answer(self) -> StepResult | StepRefusal | WorkerReady:
        assert self._socket.poll(_TIMEOUT_MS), "the loop does not answer"
        identity, *frames = self._socket.recv_multipart()
        assert identity == b"worker"
        return decode_answer(frames)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model")).directory


@pytest.fixture
def peer(directory: Path) -> Iterator[Peer]:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.set(zmq.LINGER, 0)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    loop = StepLoop(load_tiny(directory, num_gpu_blocks_override=64).runner)
    loop.start()
    loop.send(Assign(f"tcp://127.0.0.1:{port}", b"worker", _GROUP, _EPOCH))
    try:
        peer = Peer(socket, loop)
        assert peer.answer() == WorkerReady(group_id=_GROUP, epoch=_EPOCH)
        yield peer
    finally:
        loop.stop()
        socket.close()
        context.term()


def _first_step() -> dict[str, Any]:
    admission = SlotAdmission(
        slot=0, token_ids=[5, 6, 7], num_computed_tokens=0, prompt_len=3, sequence_index=0, temperature=0.0,
        top_k=0, top_p=1.0, min_p=0.0, seed=1, num_logprobs=NO_LOGPROBS, min_len=0, max_len=16, stop_token_ids=(),
    )  # fmt: skip
    return {"admissions": [admission], "grants": [0, 0, 1], "scheduled_slots": [0], "scheduled_tokens": [3]}


_NEXT_STEP: dict[str, Any] = {"scheduled_slots": [0], "scheduled_tokens": [1]}


def _tokens(answer: object) -> tuple[int, list[int]]:
    assert isinstance(answer, StepResult), answer
    return answer.step_id, answer.token_ids


def _undisturbed(peer: Peer) -> list[tuple[int, list[int]]]:
    """Answers of steps 0 to 2 of a fresh epoch after the present one."""
    epoch = peer.loop.epoch + 1
    peer.loop.send(Reset(epoch))
    assert peer.answer() == WorkerReady(group_id=_GROUP, epoch=epoch)
    peer.plan(0, epoch=epoch, **_first_step())
    peer.plan(1, epoch=epoch, **_NEXT_STEP)
    peer.plan(2, epoch=epoch, **_NEXT_STEP)
    return [_tokens(peer.answer()) for _ in range(3)]


def test_gap_is_refused_and_nothing_more_runs_until_a_reset(peer: Peer) -> None:
    peer.plan(0, **_first_step())
    _tokens(peer.answer())
    peer.plan(2, **_NEXT_STEP)
    refusal = peer.answer()
    assert isinstance(refusal, StepRefusal)
    assert (refusal.group_id, refusal.epoch, refusal.step_id) == (_GROUP, _EPOCH, 2)
    assert refusal.error == "step 1 is missing before step 2"
    peer.plan(1, **_NEXT_STEP)  # too late
    assert [step_id for step_id, _ in _undisturbed(peer)] == [0, 1, 2]
    assert peer.loop.num_steps == 4


def test_repeated_and_foreign_plans_are_dropped(peer: Peer) -> None:
    peer.plan(0, **_first_step())
    peer.plan(0, **_first_step())
    peer.plan(1, epoch=_EPOCH - 1, **_NEXT_STEP)
    peer.plan(1, epoch=_EPOCH + 1, **_NEXT_STEP)
    peer.plan(1, group_id=_GROUP + 1, **_NEXT_STEP)
    peer.plan(1, **_NEXT_STEP)
    peer.plan(1, **_NEXT_STEP)
    peer.plan(0, **_first_step())
    peer.plan(2, **_NEXT_STEP)
    answers = [_tokens(peer.answer()) for _ in range(3)]
    assert answers == _undisturbed(peer)


def test_garbage_is_dropped_and_counted(peer: Peer) -> None:
    good = encode_plan(StepPlan(group_id=_GROUP, epoch=_EPOCH, step_id=0, **_first_step()))
    other_version = step_pb2.StepHeader(protocol_version=999, kind=step_pb2.STEP_KIND_PLAN)
    garbage = [
        [b""],
        [b"\xff\xfe garbage"],
        [other_version.SerializeToString()],
        good[:-1],
        [*good, b"spare"],
        [good[0], *(bytes(frame)[:-1] for frame in good[1:])],
    ]
    for frames in garbage:
        peer.send(frames)
    peer.send(good)
    peer.plan(1, **_NEXT_STEP)
    peer.plan(2, **_NEXT_STEP)
    answers = [_tokens(peer.answer()) for _ in range(3)]
    assert peer.loop.num_dropped_messages == len(garbage)
    assert answers == _undisturbed(peer)


def test_contradicting_plan_is_refused_with_its_reason(peer: Peer) -> None:
    peer.plan(0, **_NEXT_STEP)
    refusal = peer.answer()
    assert isinstance(refusal, StepRefusal)
    assert refusal.step_id == 0
    assert refusal.error == "PlanError: a plan that schedules an empty slot"
    assert len(_undisturbed(peer)) == 3


def test_reset_empties_the_slots(peer: Peer) -> None:
    assert _undisturbed(peer) == _undisturbed(peer)


def test_loop_that_dies_says_so(peer: Peer) -> None:
    peer.loop.send(Assign("no endpoint", b"worker", _GROUP, _EPOCH))
    with pytest.raises(EngineError, match="the step loop has ended"):
        peer.loop.wait()
