"""The scheduler's end of the data plane: one ZeroMQ ROUTER that workers connect to.

Carries frames and knows which routing ids were issued; knows neither plans nor requests. A frame from a stranger, or
one that cannot be read, is counted, logged now and then, and dropped: nothing else is disturbed.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import cast

import zmq

from quire.errors import ConfigError
from quire.rpc import MAX_MESSAGE_BYTES
from quire.rpc.port import describe_holder
from quire.wire.codec import decode_answer
from quire.wire.column import Buffer, FrameError
from quire.wire.result import StepRefusal, StepResult, WorkerReady

logger = logging.getLogger(__name__)

_HIGH_WATER_MARK = 64
"""Messages per worker; the pipeline holds a handful, so a full queue means that the worker does not read."""

_ROUTING_ID_BYTES = 16
_LOG_EVERY = 1000

Answer = StepResult | StepRefusal | WorkerReady


class WorkerUnreachable(Exception):
    """A frame could not be handed to a worker: it is not connected or does not read."""


class DataPlane:
    """Sends plans to workers and receives their answers."""

    def __init__(self, host: str, port: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.SNDHWM, _HIGH_WATER_MARK)
        self._socket.set(zmq.RCVHWM, _HIGH_WATER_MARK)
        self._socket.set(zmq.ROUTER_MANDATORY, 1)
        self._socket.set(zmq.ROUTER_HANDOVER, 0)
        self._socket.set(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self._socket.set(zmq.HEARTBEAT_IVL, 2000)
        self._socket.set(zmq.HEARTBEAT_TIMEOUT, 10_000)
        self._members: set[bytes] = set()
        self._readable = asyncio.Event()
        self.num_dropped_messages = 0
        self.port = self._bind(host, port)

    def issue_routing_id(self) -> bytes:
        """A new, unguessable identity that answers are accepted from."""
        routing_id = b"w" + secrets.token_bytes(
            _ROUTING_ID_BYTES - 1
        )  # ids beginning with a zero byte are ZeroMQ's
        self._members.add(routing_id)
        return routing_id

    def revoke(self, routing_id: bytes) -> None:
        """Takes an identity back: what it still sends is dropped."""
        self._members.discard(routing_id)

    def send(self, routing_id: bytes, frames: Sequence[Buffer]) -> None:
        """Hands frames over without waiting. Raises `WorkerUnreachable`."""
        try:
            self._socket.send_multipart([routing_id, *frames], flags=zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise WorkerUnreachable(str(error)) from error
        self._note_readable()

    async def answers(self) -> AsyncIterator[tuple[bytes, Answer]]:
        """Every readable answer of a known worker, with its routing id."""
        loop = asyncio.get_running_loop()
        descriptor = cast("int", self._socket.get(zmq.FD))
        loop.add_reader(descriptor, self._note_readable)
        try:
            while True:
                while not self._note_readable():
                    await self._readable.wait()
                if (answer := self._receive()) is not None:
                    yield answer
                # Plans that are answered at once, or garbage, must not keep everybody else from the loop.
                await asyncio.sleep(0)
        finally:
            loop.remove_reader(descriptor)

    def close(self) -> None:
        """Closes the socket; what was not sent is lost."""
        self._socket.close(linger=0)
        self._context.term()

    def _receive(self) -> tuple[bytes, Answer] | None:
        """The message that is there, if it is an answer of a known worker."""
        routing_id, *frames = self._socket.recv_multipart(flags=zmq.NOBLOCK)
        if routing_id not in self._members:
            self._note_dropped("from an unknown peer")
            return None
        try:
            return routing_id, decode_answer(frames)
        except FrameError as error:
            self._note_dropped(str(error))
            return None

    def _note_readable(self) -> bool:
        """Asks ZeroMQ whether a message is there.

        Its descriptor only tells that something changed, and forgets it with the next call on the socket, a send
        included: so this is asked after every one of them.
        """
        if cast("int", self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            self._readable.set()
            return True
        self._readable.clear()
        return False

    def _bind(self, host: str, port: int) -> int:
        try:
            self._socket.bind(f"tcp://{host}:{port or '*'}")
        except zmq.ZMQError as error:
            raise ConfigError(
                f"--data-port {port}: cannot listen on {host}:{port}: {describe_holder(port)}",
                field="data_port",
            ) from error
        return int(self._socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def _note_dropped(self, why: str) -> None:
        if self.num_dropped_messages % _LOG_EVERY == 0:
            logger.warning(
                "dropped a message on the data plane",
                extra={"why": why, "total": self.num_dropped_messages + 1},
            )
        self.num_dropped_messages += 1
