"""The worker's step loop: one thread that owns the ZeroMQ socket and the device.

Receives plans, refuses what is out of order, launches and answers: the next plan is launched while the device still
works on the one before. Talks to the rest of the process through a bounded queue of commands (in) and plain attributes
(out), so that neither ever waits for the other. Knows no gRPC.
"""

import logging
import queue
import threading
from collections import deque
from dataclasses import dataclass
from time import monotonic, sleep

import zmq

from quire.errors import EngineError
from quire.rpc import MAX_MESSAGE_BYTES
from quire.wire.codec import decode_plan, encode_ready, encode_refusal, encode_result
from quire.wire.column import FrameError
from quire.wire.plan import StepPlan
from quire.wire.result import StepRefusal, WorkerReady
from quire_worker.pending_result import PendingResult
from quire_worker.runner import Runner

logger = logging.getLogger(__name__)

_HIGH_WATER_MARK = 64
_POLL_MS = 1000
_SEND_TIMEOUT_MS = 5000
_MAX_COMMANDS = 64
_MAX_LAUNCHED = 8
"""Steps the device may be given ahead; the scheduler's pipeline depth is far below."""

_DEVICE_POLL_S = 20e-6


@dataclass(frozen=True, slots=True)
class Assign:
    """Connect to a scheduler as a member of a group, with nothing in the slots."""

    endpoint: str
    routing_id: bytes
    group_id: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Reset:
    """Drop every slot and wait for step 0 of a new epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Finish what was received and end the thread."""


Command = Assign | Reset | Stop


class StepLoop:
    """Executes plans in order, on a thread of its own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._commands: queue.Queue[Command] = queue.Queue(_MAX_COMMANDS)
        self._context = zmq.Context()
        self._bell = self._context.socket(zmq.PAIR)
        self._bell.bind("inproc://step-loop")
        self._thread = threading.Thread(target=self._run, name="step-loop", daemon=True)
        self._socket: zmq.Socket[bytes] | None = None
        self._launched: deque[PendingResult] = deque()
        self._group_id = 0
        self._next_step_id = 0
        self._is_broken = False
        self._was_stopped = False
        self.epoch = 0
        self.last_step_id = 0
        self.num_steps = 0
        self.num_dropped_messages = 0
        self.busy = False
        self.last_step_end: float | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def send(self, command: Command) -> None:
        """Gives the thread a command. Raises `queue.Full` when it has stopped listening."""
        self._commands.put_nowait(command)
        self._bell.send(b"", zmq.NOBLOCK)

    def wait(self) -> None:
        """Blocks until the thread has ended. Raises `EngineError` when nobody told it to."""
        self._thread.join()
        if not self._was_stopped:
            raise EngineError("the step loop has ended: see the log for its error")

    def stop(self) -> None:
        """Ends the thread after the step that it executes."""
        if self._thread.is_alive():
            self.send(Stop())
            self._thread.join()
        self._bell.close(linger=0)
        self._context.term()

    def _run(self) -> None:
        bell = self._context.socket(zmq.PAIR)
        bell.connect("inproc://step-loop")
        poller = zmq.Poller()
        poller.register(bell, zmq.POLLIN)
        try:
            while True:
                ready = dict(poller.poll(0 if self._launched else _POLL_MS))
                if bell in ready:
                    bell.recv()
                    if not self._obey(self._commands.get_nowait(), poller):
                        return
                elif (
                    self._socket is not None and self._socket in ready and len(self._launched) < _MAX_LAUNCHED
                ):
                    self._receive(self._socket)
                elif self._launched:
                    self._collect()
        except Exception:
            logger.exception("the step loop failed")
        finally:
            if self._socket is not None:
                self._socket.close(linger=1000)
            bell.close(linger=0)

    def _obey(self, command: Command, poller: zmq.Poller) -> bool:
        match command:
            case Assign():
                self._connect(command, poller)
                self._begin_epoch(command.epoch)
            case Reset():
                self._begin_epoch(command.epoch)
            case Stop():
                self._was_stopped = True
                self._collect_all()
                return False
        return True

    def _connect(self, assign: Assign, poller: zmq.Poller) -> None:
        if self._socket is not None:
            poller.unregister(self._socket)
            self._socket.close(linger=0)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.set(zmq.IDENTITY, assign.routing_id)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.set(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.set(zmq.SNDTIMEO, _SEND_TIMEOUT_MS)
        self._socket.set(zmq.HEARTBEAT_IVL, 2000)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 10_000)
        self._socket.connect(assign.endpoint)
        poller.register(self._socket, zmq.POLLIN)
        self._group_id = assign.group_id

    def _begin_epoch(self, epoch: int) -> None:
        # What is still on the device belongs to an epoch that has ended; later steps run after it.
        self._launched.clear()
        self.busy = False
        self._runner.drop_slots()
        self.epoch = epoch
        self._next_step_id = 0
        self._is_broken = False
        self._answer(encode_ready(WorkerReady(group_id=self._group_id, epoch=epoch)))

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        frames = socket.recv_multipart(copy=False)
        try:
            plan = decode_plan([frame.buffer for frame in frames])
        except FrameError as error:
            self.num_dropped_messages += 1
            logger.warning("dropped a message on the data plane", extra={"why": str(error)})
            return
        if plan.group_id != self._group_id or plan.epoch != self.epoch or self._is_broken:
            return  # of an epoch that has ended, or after a refusal: a reset is on its way
        if plan.step_id < self._next_step_id:
            return  # a repeat
        if plan.step_id > self._next_step_id:
            self._refuse(plan, f"step {self._next_step_id} is missing before step {plan.step_id}")
            return
        self._launch(plan)

    def _launch(self, plan: StepPlan) -> None:
        self.busy = True
        try:
            self._launched.append(self._runner.execute(plan))
        except Exception as error:
            logger.exception("a step failed", extra={"step": plan.step_id, "epoch": plan.epoch})
            self._collect_all()
            self._refuse(plan, f"{type(error).__name__}: {error}")
            return
        self._next_step_id += 1

    def _collect(self) -> None:
        """Answers the oldest launched step if it is done. Raises what the device says of one that failed."""
        if not self._launched[0].is_ready:
            sleep(_DEVICE_POLL_S)
            return
        result = self._launched.popleft()()
        self.busy = bool(self._launched)
        self.last_step_end = monotonic()
        self.last_step_id = result.step_id
        self.num_steps += 1
        self._answer(encode_result(result))
        self._draw_if_ready()

    def _draw_if_ready(self) -> None:
        """Lets the next step draw, if it waited for the tokens of the one that was answered."""
        try:
            self._runner.draw_if_ready()
        except Exception as error:
            logger.exception("a step failed", extra={"epoch": self.epoch})
            held = self._launched.pop()
            self._collect_all()
            self._refuse(held.plan, f"{type(error).__name__}: {error}")

    def _collect_all(self) -> None:
        while self._launched:
            self._collect()
        self.busy = False

    def _refuse(self, plan: StepPlan, error: str) -> None:
        self._is_broken = True
        refusal = StepRefusal(group_id=plan.group_id, epoch=plan.epoch, step_id=plan.step_id, error=error)
        self._answer(encode_refusal(refusal))

    def _answer(self, frames: list[bytes | bytearray | memoryview]) -> None:
        if self._socket is None:
            return
        try:
            self._socket.send_multipart(frames)
        except zmq.Again:
            logger.warning("an answer could not be sent in time; the scheduler will reset the group")
