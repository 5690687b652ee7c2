"""Errors over a real call: code, field and retry delay arrive as they were sent."""

import grpc
import pytest

from quire.errors import TABLE, Overloaded, QuireError, error_for_code
from quire.rpc.channel import open_channel
from quire.rpc.server import bind, build_server
from quire.rpc.status import abort_with, error_from_rpc
from quire.v1 import generation_pb2, generation_pb2_grpc


class _Failing(generation_pb2_grpc.GenerationServiceServicer):
    def __init__(self, error: QuireError) -> None:
        self._error = error

    async def ListModels(self, request: object, context: grpc.aio.ServicerContext) -> None:
        await abort_with(context, self._error)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.error.__name__)
async def test_an_error_survives_the_wire(row) -> None:
    sent = row.error("what was wrong", field="top_p", retry_after_ms=1500)
    server = build_server()
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(_Failing(sent), server)
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    async with open_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await generation_pb2_grpc.GenerationServiceStub(channel).ListModels(
                generation_pb2.ListModelsRequest()
            )
    await server.stop(None)
    received = error_from_rpc(caught.value)
    assert caught.value.code().value[0] == row.grpc_code
    assert type(received) is row.error
    assert (received.message, received.field, received.retry_after_ms) == ("what was wrong", "top_p", 1500)


def test_the_table_has_one_row_per_code() -> None:
    assert len({row.grpc_code for row in TABLE}) == len(TABLE)
    assert type(error_for_code(8, "full")) is Overloaded
