"""Where workers report for duty: WorkerRegistryService, and what can be served with those that are here.

Knows registrations, heartbeats and capacities; the loop decides when a group is used, reset or dropped.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from time import monotonic

import grpc

from quire.config import SchedulerConfig
from quire.errors import InvalidRequest, ProtocolMismatch, QuireError
from quire.rpc.status import abort_with
from quire.v1 import scheduler_pb2, worker_pb2, worker_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from quire_scheduler.core import GroupCapacity
from quire_scheduler.loop import EngineLoop
from quire_scheduler.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_LIVENESS_CHECKS_PER_TIMEOUT = 4


class Registry(worker_pb2_grpc.WorkerRegistryServiceServicer):
    """Registers workers and watches over them."""

    def __init__(self, config: SchedulerConfig, loop: EngineLoop) -> None:
        self._config = config
        self._loop = loop
        self._num_groups = 0
        self._model: worker_pb2.ModelSpec | None = None
        self._max_num_seqs = 0
        self._draining = False
        loop.on_change(self.announce)

    @property
    def model(self) -> worker_pb2.ModelSpec | None:
        """The model served; it stays known while workers are away. None before the first worker."""
        return self._model

    @property
    def draining(self) -> bool:
        """Whether nothing new is admitted."""
        return self._draining

    def serving_state(self) -> scheduler_pb2.ServingState:
        """What can be served at this moment."""
        state = scheduler_pb2.ServingState(
            ready=self._loop.num_live_groups > 0, draining=self._draining, max_num_seqs=self._max_num_seqs
        )
        if self._model is not None:
            state.served_model_names.extend(self._model.served_model_names)
            state.model = self._model.model
            state.revision = self._model.revision
            state.max_model_len = self._model.max_model_len
            state.vocab_size = self._model.vocab_size
            state.eos_token_ids.extend(self._model.eos_token_ids)
        return state

    def announce(self) -> None:
        """Tells every owner what can be served now."""
        self._loop.tell_state(self.serving_state())

    def stop_admission(self) -> None:
        """From now on nothing new is admitted."""
        self._draining = True
        self.announce()

    async def Register(
        self,
        request_iterator: AsyncIterator[worker_pb2.RegisterRequest],
        context: grpc.aio.ServicerContext,
    ) -> AsyncIterator[worker_pb2.RegisterResponse]:
        """Serves one worker for as long as its stream lives."""
        first = await anext(request_iterator, None)
        if first is None or first.WhichOneof("message") != "registration":
            await abort_with(
                context, InvalidRequest("the first message must be a registration", field="registration")
            )
        try:
            group = self._admit(first.registration)
        except QuireError as error:
            logger.warning(
                "worker refused", extra={"worker": first.registration.worker_id, "why": error.message}
            )
            await abort_with(context, error)
        reader = asyncio.create_task(self._read(group, request_iterator))
        try:
            yield self._assignment(group)
            while (directive := await self._next_directive(group, reader)) is not None:
                yield directive
        finally:
            reader.cancel()
            self._loop.drop_group(group, "its registration stream ended")

    async def watch(self) -> None:
        """Drops workers that are silent for too long; runs until cancelled."""
        timeout_s = self._config.liveness_timeout_ms / 1000
        while True:
            await asyncio.sleep(timeout_s / _LIVENESS_CHECKS_PER_TIMEOUT)
            for group in list(self._loop.groups.values()):
                if monotonic() - group.last_heard > timeout_s:
                    self._loop.drop_group(group, f"silent for {self._config.liveness_timeout_ms} ms")
                    group.send_drain()

    def _admit(self, registration: worker_pb2.WorkerRegistration) -> WorkerGroup:
        if registration.protocol_version != PROTOCOL_VERSION:
            raise ProtocolMismatch(
                f"protocol_version={registration.protocol_version}: this scheduler speaks {PROTOCOL_VERSION}",
                field="protocol_version",
            )
        if registration.world_size != 1:
            raise InvalidRequest(
                f"world_size={registration.world_size}: tensor parallelism is not built yet, it must be 1",
                field="world_size",
            )
        if (
            self._model is not None
            and self._loop.groups
            and not _serves_the_same(self._model, registration.model)
        ):
            raise InvalidRequest(
                f"model={registration.model.model!r}: this scheduler serves {self._model.model!r} with other "
                "names, context length, vocabulary or end tokens",
                field="model",
            )
        capacity = self._capacity(registration)
        self._model = registration.model
        self._max_num_seqs = capacity.max_num_seqs
        self._num_groups += 1
        group = WorkerGroup(
            group_id=self._num_groups,
            worker_id=registration.worker_id,
            routing_id=self._loop.data_plane.issue_routing_id(),
            epoch=self._loop.next_epoch(),
            model=registration.model,
            capacity=capacity,
        )
        self._loop.add_group(group)
        return group

    def _capacity(self, registration: worker_pb2.WorkerRegistration) -> GroupCapacity:
        offered = registration.capacity
        max_num_seqs = min(offered.max_num_seqs, self._config.max_num_seqs or offered.max_num_seqs)
        try:
            return GroupCapacity(
                num_blocks=offered.num_blocks,
                block_size=offered.block_size,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max(
                    max_num_seqs,
                    min(
                        offered.max_num_batched_tokens,
                        self._config.max_num_batched_tokens or offered.max_num_batched_tokens,
                    ),
                ),
                max_model_len=registration.model.max_model_len,
                vocab_size=registration.model.vocab_size,
            )
        except ValueError as error:
            raise InvalidRequest(f"capacity: {error}", field="capacity") from error

    def _assignment(self, group: WorkerGroup) -> worker_pb2.RegisterResponse:
        host = self._config.advertise_host or self._config.host
        return worker_pb2.RegisterResponse(
            assignment=worker_pb2.WorkerAssignment(
                group_id=group.group_id,
                epoch=group.epoch,
                data_endpoint=f"tcp://{host}:{self._loop.data_plane.port}",
                routing_id=group.routing_id,
                heartbeat_interval_ms=self._config.heartbeat_interval_ms,
                liveness_timeout_ms=self._config.liveness_timeout_ms,
            )
        )

    async def _read(self, group: WorkerGroup, messages: AsyncIterator[worker_pb2.RegisterRequest]) -> None:
        async for message in messages:
            if message.WhichOneof("message") == "heartbeat":
                self._loop.heartbeat(group, busy=message.heartbeat.busy)

    async def _next_directive(
        self, group: WorkerGroup, reader: "asyncio.Task[None]"
    ) -> worker_pb2.RegisterResponse | None:
        """What to send next; None once the worker's side of the stream has ended. Raises what its reader raises."""
        getter = asyncio.create_task(group.directives.get())
        try:
            await asyncio.wait((getter, reader), return_when=asyncio.FIRST_COMPLETED)
            return getter.result() if getter.done() else reader.result()
        finally:
            getter.cancel()


def _serves_the_same(a: worker_pb2.ModelSpec, b: worker_pb2.ModelSpec) -> bool:
    return a == b
