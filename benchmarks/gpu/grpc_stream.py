"""One client process's streams over gRPC, round-robin over several connections.

The kernel spreads connections, not calls, over the processes that share the port.
"""

import asyncio
from time import monotonic
from typing import Any

import grpc

from benchmarks.gpu.workload import Ask
from quire.bench.backend import grpc_trace
from quire.bench.trace import Trace
from quire.rpc.channel import open_channel
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2, tokenizer_pb2

_GENERATE = "/quire.v1.GenerationService/Generate"
_READY_POLL_S = 0.05
_READY_TIMEOUT_S = 60.0
_MAX_CHANNELS = 16


class GrpcStreams:
    """`GenerationService.Generate`."""

    def __init__(self, address: str, num_streams: int) -> None:
        self._address = address
        self._num_channels = min(_MAX_CHANNELS, num_streams)
        self._channels: list[grpc.aio.Channel] = []
        self._calls: list[Any] = []

    async def open(self) -> None:
        """Connects, and waits until every connection's end can serve."""
        self._channels = [open_channel(self._address) for _ in range(self._num_channels)]
        await asyncio.gather(*(_until_ready(channel) for channel in self._channels))
        self._calls = [channel.unary_stream(_GENERATE) for channel in self._channels]

    async def close(self) -> None:
        """Closes every connection."""
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def ask(self, index: int, message: bytes) -> tuple[list[float], list[bytes]]:
        """One request: when each message came, and its bytes."""
        times: list[float] = []
        messages: list[bytes] = []
        async for answer in self._calls[index % len(self._calls)](message):
            times.append(monotonic())
            messages.append(answer)
        return times, messages

    @staticmethod
    def encode(ask: Ask) -> bytes:
        """The request on the wire."""
        return generation_pb2.GenerateRequest(
            token_ids=tokenizer_pb2.TokenIds(ids=ask.prompt_token_ids),
            sampling_params=sampling_pb2.SamplingParams(
                max_tokens=ask.num_out, seed=ask.seed, ignore_eos=True, **ask.sampling
            ),
        ).SerializeToString()

    @staticmethod
    def trace(sent_s: float, times_s: list[float], messages: list[bytes]) -> Trace:
        """What the messages held."""
        return grpc_trace(sent_s, times_s, messages)


async def _until_ready(channel: grpc.aio.Channel) -> None:
    """Until the process at the other end of this connection has a scheduler with a worker."""
    stub = generation_pb2_grpc.GenerationServiceStub(channel)
    async with asyncio.timeout(_READY_TIMEOUT_S):
        while True:
            answer = await stub.ListModels(generation_pb2.ListModelsRequest(), wait_for_ready=True)
            if any(model.ready for model in answer.models):
                return
            await asyncio.sleep(_READY_POLL_S)
