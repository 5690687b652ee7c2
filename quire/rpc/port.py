"""Who holds a TCP port of this machine. Knows sockets, no gRPC."""

import socket
from errno import EADDRINUSE

from quire.errors import ConfigError


class ReservedPort:
    """A TCP port that is kept for the processes that are to listen on it, before they start and between them.

    It is bound and nobody listens on it: connections are refused, and Linux gives its number to nobody who asks for any.
    Whoever sets SO_REUSEADDR, as gRPC and our HTTP server do, may listen on it nevertheless.
    """

    def __init__(self, host: str, port: int, flag: str) -> None:
        """Takes any free port where `port` is 0. Raises `ConfigError`, naming `flag`, host:port and the holder, when it
        cannot be listened on.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        # A port in TIME_WAIT is free, one that another process listens on is not.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ConfigError(
                f"{flag} {port}: cannot listen on {host}:{port}: {_reason_of(error, port)}", field=flag
            ) from error
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Gives it up; who listens goes on."""
        self._socket.close()


def _reason_of(error: OSError | OverflowError, port: int) -> str:
    if isinstance(error, OverflowError):
        return "a port is a number from 0 to 65535"
    if error.errno == EADDRINUSE:
        return describe_holder(port)
    return (error.strerror or str(error)).lower()


def describe_holder(port: int) -> str:
    """One phrase that names the process listening on `port`, as far as this user may see it."""
    if port == 0:
        return "the address is not one of this machine"
    import psutil  # takes 30 ms of every process's start, and is needed for what an error says

    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "the port is in use by a process that this user may not see"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port:
            return _describe_process(connection.pid)
    return "no process of this machine is seen listening there; the address may not be one of this machine"


def _describe_process(pid: int | None) -> str:
    if pid is None:
        return "the port is in use by a process of another user"
    import psutil

    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()[:6]) or process.name()
    except psutil.Error:
        return f"the port is in use by process {pid}"
    return f"the port is in use by process {pid} ({command})"
