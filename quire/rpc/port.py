"""Who holds a TCP port of this machine. Knows sockets, no gRPC."""

import socket

import psutil

from quire.errors import ConfigError


def check_port_is_free(host: str, port: int, flag: str) -> None:
    """Raises `ConfigError`, naming `flag`, host:port and the holder, when `port` cannot be bound now; 0 always can."""
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As gRPC does: a port in TIME_WAIT is free, one that another process listens on is not.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = describe_holder(port) if error.errno == 98 else (error.strerror or str(error)).lower()
            raise ConfigError(
                f"{flag} {port}: cannot listen on {host}:{port}: {reason}", field=flag
            ) from error


def describe_holder(port: int) -> str:
    """One phrase that names the process listening on `port`, as far as this user may see it."""
    if port == 0:
        return "the address is not one of this machine"
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
    try:
        process = psutil.Process(pid)
        command = " ".join(process.cmdline()[:6]) or process.name()
    except psutil.Error:
        return f"the port is in use by process {pid}"
    return f"the port is in use by process {pid} ({command})"
