"""The options of a whole stack: the flags of its services under one parser, and each service's share of them again.

Knows no process.
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import add_flags
from quire.config.flag_group import group_of
from quire.config.not_built import add_refused_flags, refuse
from quire.errors import ConfigError

if TYPE_CHECKING:
    from quire.rpc.tls import ClientTls

WIRING = frozenset({"scheduler", "reuse_port", "data_port", "advertise_host", "group_name"})
"""Settings that the launcher makes, not its user."""


def add_stack_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every flag of a stack."""
    parser.add_argument(
        "model_tag", metavar="MODEL", nargs="?", help="Model directory or hub id; the same as --model."
    )
    add_flags(parser, TokenizerConfig, skip=WIRING)
    add_flags(parser, WorkerConfig, skip=WIRING)
    add_flags(parser, SchedulerConfig, skip=WIRING)
    group_of(parser, "tokenizer_replicas").add_argument(
        "--tokenizer-replicas",
        type=int,
        default=1,
        help="Tokenizer processes that share the port (default: 1).",
    )
    add_refused_flags(parser)


def parse_options(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """What `argv` asks for, every value checked before anything starts. Raises `ConfigError`."""
    options = parser.parse_args(list(argv))
    refuse(options)
    if options.model_tag is not None:
        options.model = options.model_tag
    if options.tokenizer_replicas < 1:
        raise ConfigError(f"--tokenizer-replicas={options.tokenizer_replicas}: must be at least 1")
    for config_type in (TokenizerConfig, WorkerConfig, SchedulerConfig):
        names = [each.name for each in fields(config_type) if each.name not in WIRING]
        config_type(**{name: getattr(options, name) for name in names})
    return options


def stack_tls(options: Any) -> "ClientTls | None":
    """How the launcher itself speaks to the stack of `options`. Raises `ConfigError`."""
    if not options.ssl_certfile:
        return None
    from quire.rpc.tls import own_tls  # brings gRPC, without which processes can be started

    return own_tls(options.ssl_certfile, options.ssl_keyfile)


def service_arguments(options: Any, config_type: type[Any]) -> list[str]:
    """The command line of a service: what differs from its defaults. Its addresses are wired by the launcher."""
    arguments = ["--host", options.host] if config_type is TokenizerConfig else []
    for each in fields(config_type):
        if each.name in WIRING or each.name in ("host", "grpc_port", "port"):
            continue
        value = getattr(options, each.name)
        if value != each.default:
            arguments += flag_of(each.name, value)
    return arguments


def flag_of(name: str, value: Any) -> list[str]:
    """The words of a command line that give the setting `name` its `value`."""
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    return [flag, ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)]
