"""Opening a channel to another process. Knows addresses and limits, no service."""

import json
from ipaddress import ip_address

import grpc

from quire.errors import ConfigError
from quire.rpc import KEEPALIVE_TIME_MS, KEEPALIVE_TIMEOUT_MS, MAX_MESSAGE_BYTES
from quire.rpc.tls import ClientTls

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # Without it grpc waits a minute for the answer to a probe, whatever the keepalive timeout says.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # Internal traffic never goes through a proxy, whatever the environment says.
    ("grpc.enable_http_proxy", 0),
    # The window does not grow: a sender is to notice soon that its reader lags, and 64 KiB fill any network of ours.
    ("grpc.http2.bdp_probe", 0),
    # Each channel has its own connection and its own reconnect backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A name is looked up again when connections change, at most twice a second.
    ("grpc.dns_min_time_between_resolutions_ms", 500),
)


def open_channel(
    address: str, *, tls: ClientTls | None = None, window_bytes: int | None = None
) -> grpc.aio.Channel:
    """A channel to `address`: `host:port`, or `dns:///host:port` for every process behind a name.

    Behind a name, calls go round-robin over all addresses that it resolves to, and the name is resolved again
    whenever a connection is lost. Connecting is lazy: an absent peer shows at the first call as UNAVAILABLE. The
    caller closes the channel. `window_bytes` bounds what a peer may send ahead of a call's reader, a message that is
    larger than that excepted; without it 64 KiB. Raises `ConfigError` for anything that is no address.
    """
    options = _options(_checked_target(address), tls)
    if window_bytes is not None:
        options.append(("grpc.http2.lookahead_bytes", window_bytes))
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, tls.channel_credentials(), options=options)


def is_on_this_host(address: str) -> bool:
    """Whether what listens at `address` can be nowhere else."""
    host = address.removeprefix("dns:///").rpartition(":")[0].strip("[]")
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def open_blocking_channel(address: str, *, tls: ClientTls | None = None) -> grpc.Channel:
    """The same for a caller without an event loop."""
    options = _options(_checked_target(address), tls)
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, tls.channel_credentials(), options=options)


def key_metadata(api_key: str) -> tuple[tuple[str, str], ...]:
    """Metadata of a call that show the key; none for an empty one."""
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()


def _options(address: str, tls: ClientTls | None) -> list[tuple[str, int | str]]:
    options = list(_OPTIONS)
    if address.startswith("dns:"):
        options.append(("grpc.service_config", _SERVICE_CONFIG))
    if tls is not None and tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return options


def _checked_target(address: str) -> str:
    host, colon, port = address.removeprefix("dns:///").rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"address {address!r} is neither host:port nor dns:///host:port", field="address")
    return address
