"""EngineArgs: what an engine is made from, by the names of vLLM and of `quire serve`'s flags.

Knows the flags only through the launcher's parser, so that a setting has one name, one type and one check.
"""

import argparse
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Self

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import CommandParser, add_flags
from quire.engine_client import Connection
from quire.errors import ConfigError
from quire.launcher.option import WIRING, add_stack_flags, flag_of, parse_options, stack_tls
from quire.rpc.tls import ClientTls

_FACES = frozenset(
    {"host", "port", "grpc_port", "http", "root_path", "middleware", "allowed_origins", "allow_credentials"}
    | {"api_key", "api_key_file", "ssl_certfile", "ssl_keyfile"}
)
"""How a server is found and whom it lets in: a program that has an engine inside says that for itself."""

_OWN_STACK: Mapping[str, Any] = {"grpc_port": 0, "port": 0, "http": False}
"""A stack of this process's own serves it alone, unless it is asked for more."""


class EngineArgs:
    """Arguments of `LLM` and, as `AsyncEngineArgs`, of `AsyncLLMEngine`.

    Either an engine starts a stack of its own, and then `engine_args` are the settings that `quire serve --help` lists,
    by their names in Python (`max_model_len=4096`); or, with `address`, it attaches to a running one, of which `model`
    then names a served model; `tls` speaks TLS with it, which a file `ssl_ca_certs` of authorities (PEM) or the
    `ssl_server_name` that its certificate bears ask for as well.

    Raises `ConfigError` naming an argument that is unknown, that is not built yet or whose value breaks a rule.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        address: str | None = None,
        api_key: str | None = None,
        tls: bool = False,
        ssl_ca_certs: str | None = None,
        ssl_server_name: str = "",
        **engine_args: Any,
    ) -> None:
        self.model = model
        self.address = address
        self.api_key = api_key
        self.tls = tls
        self.ssl_ca_certs = ssl_ca_certs
        self.ssl_server_name = ssl_server_name
        self.engine_args = {name: value for name, value in engine_args.items() if value is not None}
        self._options = self._checked()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(model={self.model!r}, address={self.address!r}, **{self.engine_args!r})"
        )

    @property
    def stack_options(self) -> argparse.Namespace | None:
        """What the launcher starts a stack from; None where one runs already."""
        return self._options

    def connection(self, address: str) -> Connection:
        """How the stack at `address` is spoken to."""
        replicas = self._options.tokenizer_replicas if self._options is not None else 1
        return Connection(
            address=address,
            api_key=self.api_key,
            tls=self._tls(),
            model=self.model or "" if self._options is None else "",
            # The kernel spreads connections by chance: a few per process leave none of them without work.
            num_channels=4 * replicas if replicas > 1 else 1,
        )

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        """Adds the flags of an engine to a program's own."""
        parser.add_argument(
            "--address", help="A running stack to attach to, host:port (default: one of its own)."
        )
        for config_type in (TokenizerConfig, WorkerConfig, SchedulerConfig):
            add_flags(parser, config_type, skip=WIRING | _FACES)
        return parser

    @classmethod
    def from_cli_args(cls, args: argparse.Namespace) -> Self:
        """The arguments among what a parser with `add_cli_args` has read."""
        flags = cls.add_cli_args(CommandParser(prog=cls.__name__, description=None))
        defaults = vars(flags.parse_args([]))
        given = {
            name: getattr(args, name) for name, default in defaults.items() if getattr(args, name) != default
        }
        return cls(**given)

    @property
    def _wants_tls(self) -> bool:
        return self.tls or self.ssl_ca_certs is not None or bool(self.ssl_server_name)

    def _tls(self) -> ClientTls | None:
        if self._options is not None:
            return stack_tls(self._options)
        if not self._wants_tls:
            return None
        return ClientTls(ca_certs=self.ssl_ca_certs, server_name=self.ssl_server_name)

    def _checked(self) -> argparse.Namespace | None:
        if self.address is None:
            if self._wants_tls:
                raise ConfigError(
                    "tls: needs address: a stack of this process's own is on this machine", field="tls"
                )
            return self._parsed()
        if self.engine_args:
            name, value = next(iter(self.engine_args.items()))
            raise ConfigError(
                f"{name}={value!r}: cannot be set for the running stack at address={self.address!r}",
                field=name,
            )
        return None

    def _parsed(self) -> argparse.Namespace:
        parser = CommandParser(prog=type(self).__name__, description=None)
        add_stack_flags(parser)
        actions = {action.dest: action for action in parser._actions}  # pyright: ignore[reportPrivateUsage]
        settings = {**_OWN_STACK, **self.engine_args, "model": self.model, "api_key": self.api_key}
        if "api_key_file" in settings and self.api_key is None:
            raise ConfigError(
                "api_key_file: needs api_key, one of its keys, for this process", field="api_key_file"
            )
        words: list[str] = []
        for name, value in settings.items():
            if value is None:
                continue
            if name not in actions or name in WIRING or name == "model_tag":
                raise _unknown(type(self).__name__, name, list(actions))
            words += _words(actions[name], value)
        return parse_options(parser, words)


class AsyncEngineArgs(EngineArgs):
    """Arguments of `AsyncLLMEngine`."""


def _words(action: argparse.Action, value: Any) -> list[str]:
    """One setting as a command line has it."""
    if isinstance(value, bool) and not isinstance(action, argparse.BooleanOptionalAction):
        return flag_of(action.dest, True) if value else []
    shown = json.dumps(value) if isinstance(value, Mapping) else value
    flag, *values = flag_of(action.dest, shown)
    return [f"{flag}={values[0]}"] if values else [flag]


def _unknown(owner: str, name: str, known: list[str]) -> ConfigError:
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return ConfigError(f"{name}: {owner} has no such argument{hint}", field=name)
