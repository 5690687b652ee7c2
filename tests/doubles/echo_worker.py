"""A worker process's outside around a simulated inside: registers over gRPC, answers plans over ZeroMQ, no torch.

Its tokens are those of `expected_tokens`. `fate` decides what happens to each plan received and each answer sent, so
that tests can lose, double or delay frames on either side. It answers at once, or `steps_per_s` times a second, as a device would
that takes as long for every step; its first step takes `first_step_s`, in which it says that it is busy. Knows no scheduler beyond
the two protocols.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from time import monotonic

import zmq
import zmq.asyncio

from quire.rpc.channel import open_channel
from quire.v1 import worker_pb2, worker_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from quire.wire.codec import decode_plan, encode_ready, encode_refusal, encode_result
from quire.wire.column import Buffer
from quire.wire.plan import StepPlan
from quire.wire.result import StepRefusal, WorkerReady
from tests.doubles.simulated_worker import SimulatedWorker

VOCAB_SIZE = 1000
MAX_MODEL_LEN = 512
BLOCK_SIZE = 16

Fate = Callable[[str], Sequence[float]]
"""After how many seconds each copy of the next "plan" or "answer" arrives: none if it is lost, two if it is doubled.

A copy that is late is overtaken by the frames behind it."""


def delivered_once(_side: str) -> Sequence[float]:
    """The fate of frames on a network that loses nothing."""
    return (0.0,)


class EchoWorker:
    """Serves until cancelled."""

    def __init__(
        self,
        scheduler: str,
        *,
        num_blocks: int = 2048,
        max_num_seqs: int = 64,
        protocol_version: int = PROTOCOL_VERSION,
        fate: Fate = delivered_once,
        steps_per_s: float = 0.0,
        first_step_s: float = 0.0,
        model: str = "echo",
        max_model_len: int = MAX_MODEL_LEN,
        vocab_size: int = VOCAB_SIZE,
        eos_token_ids: Sequence[int] = (),
    ) -> None:
        self._scheduler = scheduler
        self._model = worker_pb2.ModelSpec(
            model=model,
            served_model_names=[Path(model).name],
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
        )
        self._capacity = worker_pb2.WorkerCapacity(
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=2048,
        )
        self._protocol_version = protocol_version
        self._fate = fate
        self._step_period_s = 1 / steps_per_s if steps_per_s else 0.0
        self._first_step_s = first_step_s
        self._busy = False
        self._worker = SimulatedWorker(
            num_blocks=num_blocks, block_size=BLOCK_SIZE, max_num_seqs=max_num_seqs, vocab_size=vocab_size
        )
        self._next_step_id = 0
        self._epoch = 0
        self._group_id = 0
        self.silent = False
        """When set, no heartbeat and no answer leaves any more."""
        self.plan_frames: list[tuple[StepPlan, int]] = []
        """Every plan executed, with the number of bytes of its frames after the header."""
        self._plan_came = asyncio.Event()

    async def next_plan(self) -> None:
        """Returns once another plan has come."""
        self._plan_came.clear()
        await self._plan_came.wait()

    async def run(self) -> None:
        """Registers, then answers plans. Raises `grpc.aio.AioRpcError` when the scheduler refuses."""
        context = zmq.asyncio.Context()
        async with open_channel(self._scheduler) as channel:
            call = worker_pb2_grpc.WorkerRegistryServiceStub(channel).Register(self._upwards())
            tasks: list[asyncio.Task[None]] = []
            socket = context.socket(zmq.DEALER)
            socket.set(zmq.LINGER, 0)
            try:
                async for message in call:
                    kind = message.WhichOneof("message")
                    if kind == "assignment":
                        self._group_id = message.assignment.group_id
                        socket.set(zmq.IDENTITY, message.assignment.routing_id)
                        socket.connect(message.assignment.data_endpoint)
                        await self._begin(socket, message.assignment.epoch)
                        tasks.append(asyncio.create_task(self._answer(socket)))
                    elif kind == "reset":
                        await self._begin(socket, message.reset.epoch)
            finally:
                for task in tasks:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await task
                socket.close(linger=0)
                context.term()

    async def _upwards(self) -> AsyncIterator[worker_pb2.RegisterRequest]:
        yield worker_pb2.RegisterRequest(
            registration=worker_pb2.WorkerRegistration(
                protocol_version=self._protocol_version,
                worker_id=f"echo-{id(self):x}",
                group_name="echo",
                world_size=1,
                model=self._model,
                capacity=self._capacity,
            )
        )
        while True:
            await asyncio.sleep(0.05)
            if not self.silent:
                heartbeat = worker_pb2.WorkerHeartbeat(epoch=self._epoch, busy=self._busy)
                yield worker_pb2.RegisterRequest(heartbeat=heartbeat)

    async def _begin(self, socket: "zmq.asyncio.Socket", epoch: int) -> None:
        self._worker.drop_slots()
        self._epoch, self._next_step_id = epoch, 0
        await socket.send_multipart(encode_ready(WorkerReady(group_id=self._group_id, epoch=epoch)))

    async def _answer(self, socket: "zmq.asyncio.Socket") -> None:
        due = 0.0
        while True:
            frames = await socket.recv_multipart()
            if self.silent:
                continue
            if self._first_step_s:
                self._busy = True
                await asyncio.sleep(self._first_step_s)
                self._busy, self._first_step_s = False, 0.0
            if self._step_period_s:
                due = max(due + self._step_period_s, monotonic())
                await asyncio.sleep(due - monotonic())
            for delay_s in self._fate("plan"):
                self._after(delay_s, self._take, socket, frames)

    def _take(self, socket: "zmq.asyncio.Socket", frames: Sequence[Buffer]) -> None:
        answer = self._execute(frames)
        for delay_s in self._fate("answer") if answer else ():
            self._after(delay_s, self._send, socket, answer)

    def _send(self, socket: "zmq.asyncio.Socket", answer: Sequence[Buffer]) -> None:
        if not socket.closed:
            socket.send_multipart(answer)

    def _after(self, delay_s: float, call: Callable[..., None], *arguments: object) -> None:
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, call, *arguments)
        else:
            call(*arguments)

    def _execute(self, frames: Sequence[Buffer]) -> list[Buffer]:
        plan = decode_plan(frames)
        if plan.epoch != self._epoch or plan.step_id < self._next_step_id:
            return []
        if plan.step_id > self._next_step_id:
            return encode_refusal(
                StepRefusal(
                    group_id=plan.group_id,
                    epoch=plan.epoch,
                    step_id=plan.step_id,
                    error=f"step {plan.step_id} where {self._next_step_id} was due",
                )
            )
        self._next_step_id += 1
        self.plan_frames.append((plan, sum(len(frame) for frame in frames[1:])))
        self._plan_came.set()
        return encode_result(self._worker.execute(plan))
