"""How far a server runs ahead of whoever reads a stream: as far as the channel's window, and a message larger than it passes."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from quire.rpc.channel import is_on_this_host, open_channel
from quire.rpc.server import bind, build_server
from quire.v1 import generation_pb2, generation_pb2_grpc

_WINDOW_BYTES = 8192
_UNSEEN_BYTES = 4096
"""What a server may have handed to its own end of the connection besides."""


class _Chatty(generation_pb2_grpc.GenerationServiceServicer):
    """Says the same again and again, and counts."""

    def __init__(self, num_chars: int) -> None:
        self._response = generation_pb2.GenerateResponse(request_id="x" * num_chars)
        self.num_sent = 0

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        for self.num_sent in range(1, request.sampling_params.max_tokens + 1):
            yield self._response


@pytest.mark.parametrize("num_chars", [500, 100_000])
# Of the larger messages one exceeds the window; what is held is that they pass.
async def test_a_server_runs_no_further_ahead_than_the_window(num_chars: int) -> None:
    servicer = _Chatty(num_chars)
    server = build_server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(servicer, server)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    request = generation_pb2.GenerateRequest()
    request.sampling_params.max_tokens = 1000
    async with open_channel(f"127.0.0.1:{port}", window_bytes=_WINDOW_BYTES) as channel:
        call = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request)
        assert await call.read()
        await _until_still(servicer)
        assert servicer.num_sent <= 3 + (_WINDOW_BYTES + _UNSEEN_BYTES) // num_chars
        num_read = 1
        while await call.read():
            num_read += 1
    await server.stop(None)
    assert num_read == 1000


@pytest.mark.parametrize(
    ("address", "is_here"),
    [
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("10.0.0.1:1", False),
        ("scheduler:1", False),
        ("dns:///scheduler:1", False),
    ],
)
def test_what_is_on_this_host_is_known_by_its_address(address: str, is_here: bool) -> None:
    assert is_on_this_host(address) is is_here


async def _until_still(servicer: _Chatty) -> None:
    """Until the server has sent nothing for a while."""
    before = -1
    while before != servicer.num_sent:
        before = servicer.num_sent
        await asyncio.sleep(0.2)
