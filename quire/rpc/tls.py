"""TLS of gRPC: what a server shows, and whom a client trusts. Knows no address and no service."""

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from quire.errors import ConfigError

_MAX_FLIGHTS = 4
"""More than any version of the handshake has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """How a client knows its server."""

    ca_certs: str | None = None
    """File with the authorities (PEM) that may vouch for it, or with its own certificate; default: those of the system."""
    server_name: str = ""
    """Name that its certificate bears, where it is not that of the address."""

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel. Raises `ConfigError` when the file cannot be read."""
        return grpc.ssl_channel_credentials(_read(self.ca_certs, "ssl_ca_certs") if self.ca_certs else None)

    def ssl_context(self) -> ssl.SSLContext:
        """For a socket. Raises `ConfigError` when the file holds no certificate."""
        try:
            context = ssl.create_default_context(cafile=self.ca_certs)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ssl_ca_certs={self.ca_certs}: {error}", field="ssl_ca_certs") from error
        # As grpc has it: whatever the file holds is trusted, be it an authority or the server itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


def server_credentials(certfile: str, keyfile: str | None) -> grpc.ServerCredentials:
    """For a server that shows `certfile` (PEM), which holds its key too if there is no `keyfile`. Raises `ConfigError`."""
    _server_context(certfile, keyfile)
    chain = _read(certfile, "ssl_certfile")
    key = chain if keyfile is None else _read(keyfile, "ssl_keyfile")
    return grpc.ssl_server_credentials([(key, chain)])


def own_tls(certfile: str, keyfile: str | None) -> ClientTls:
    """How whoever has a server's certificate speaks to it, by whatever address and whoever signed it. Raises `ConfigError`."""
    return ClientTls(ca_certs=certfile, server_name=_certified_name(certfile, keyfile))


def _server_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An empty password: nobody is asked for one at a terminal.
        context.load_cert_chain(certfile, keyfile, password="")
    except (OSError, ssl.SSLError) as error:
        raise _unusable(certfile, error) from error
    return context


def _certified_name(certfile: str, keyfile: str | None) -> str:
    """A name that a certificate vouches for, as a handshake in memory shows it: the library reads none from a file."""
    server_context = _server_context(certfile, keyfile)
    client_context = ClientTls(ca_certs=certfile).ssl_context()
    client_context.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for _ in range(_MAX_FLIGHTS):
            for side in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        return _name_in(client.getpeercert() or {})
    except (ssl.SSLError, ValueError) as error:
        raise _unusable(certfile, error) from error


def _name_in(certificate: Any) -> str:
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names += [name for part in certificate.get("subject", ()) for kind, name in part if kind == "commonName"]
    if not names:
        raise ValueError("it bears no name")
    return names[0].replace("*", "any", 1)


def _read(file: str, field: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{field}={file}: {error.strerror}", field=field) from error


def _unusable(certfile: str, error: Exception) -> ConfigError:
    return ConfigError(f"--ssl-certfile={certfile}: it cannot be used: {error}", field="ssl_certfile")
