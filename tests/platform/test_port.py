"""A port that is reserved before anybody listens on it."""

import asyncio
import socket

import grpc
import pytest

from quire.errors import ConfigError
from quire.rpc.port import ReservedPort
from quire.rpc.server import bind, build_server

HOST = "127.0.0.1"


def test_it_refuses_connections_until_a_server_listens_and_again_when_that_has_ended() -> None:
    port = ReservedPort(HOST, 0, "--grpc-port")
    for reuse_port in (False, True):
        assert not _answers(port.number)
        asyncio.run(_serve(port.number, reuse_port=reuse_port))
    port.close()


def test_replicas_listen_on_it_together() -> None:
    port = ReservedPort(HOST, 0, "--grpc-port")
    asyncio.run(_serve(port.number, reuse_port=True, num_servers=3))
    port.close()


def test_a_port_that_somebody_listens_on_is_refused_even_if_shared() -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind((HOST, 0))
        holder.listen()
        number = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"--port {number}: .* in use by process \d+"):
            ReservedPort(HOST, number, "--port")


@pytest.mark.parametrize("number", [-1, 65536])
def test_a_number_that_is_no_port_is_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"--port {number}: .* from 0 to 65535"):
        ReservedPort(HOST, number, "--port")


async def _serve(number: int, *, reuse_port: bool, num_servers: int = 1) -> None:
    servers = [build_server(reuse_port=reuse_port) for _ in range(num_servers)]
    for server in servers:
        assert bind(server, HOST, number) == number
        await server.start()
    async with grpc.aio.insecure_channel(f"{HOST}:{number}") as channel:
        await asyncio.wait_for(channel.channel_ready(), 10)
    for server in servers:
        await server.stop(grace=None)


def _answers(number: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex((HOST, number)) == 0
