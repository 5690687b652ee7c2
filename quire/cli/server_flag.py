"""The flags of every command that says whom it talks to and how that server is trusted."""

from argparse import Namespace
from typing import Any

from quire.rpc.tls import ClientTls


def add_tls_flags(group: Any) -> None:
    """Adds what tells a server's certificate from another's."""
    group.add_argument(
        "--tls", action="store_true", help="Speak TLS over gRPC; either of the next two asks for it too."
    )
    group.add_argument(
        "--ssl-ca-certs",
        metavar="FILE",
        help="Authorities (PEM) that may vouch for the server, or its own certificate (default: those of the system).",
    )
    group.add_argument(
        "--ssl-server-name",
        metavar="NAME",
        default="",
        help="Name that the server's certificate bears, where it is not that of the address.",
    )


def tls_of(options: Namespace) -> ClientTls | None:
    """What the flags ask for; None is plain gRPC."""
    if not (options.tls or options.ssl_ca_certs or options.ssl_server_name):
        return None
    return ClientTls(ca_certs=options.ssl_ca_certs, server_name=options.ssl_server_name)
