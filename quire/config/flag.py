"""Turns a configuration dataclass into a command line and back. Knows no setting by name.

A field's metadata holds its `help`; its type decides how it is parsed: bool becomes `--x` and `--no-x`, a tuple takes
several values, with commas or by repeating the flag, `T | None` stays None when not given.
"""

import argparse
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from typing import Any, NoReturn, TypeVar

from quire.config.config_file import add_config_flag, with_config_file
from quire.config.flag_group import group_of
from quire.config.not_built import add_refused_flags, refuse
from quire.errors import ConfigError

Config = TypeVar("Config")

_METAVARS = {int: "N", float: "X"}


def setting(
    default: Any, help_text: str, *, choices: Sequence[str] | None = None, aliases: Sequence[str] = ()
) -> Any:
    """A configuration field with a default, a sentence of help and, where the values are few, their list.

    `aliases` are further flags that set it.
    """
    return field(default=default, metadata={"help": help_text, "choices": choices, "aliases": aliases})


def parse(config_type: type[Config], argv: Sequence[str], program: str) -> Config:
    """The configuration that `argv` asks for. Raises `ConfigError`."""
    parser = CommandParser(prog=program, description=config_type.__doc__)
    add_flags(parser, config_type)
    add_refused_flags(parser)
    options = parser.parse_args(argv)
    refuse(options)
    return config_type(**vars(options))


def add_flags(
    parser: argparse.ArgumentParser, config_type: type[Any], *, skip: frozenset[str] = frozenset()
) -> None:
    """Adds one flag per field of `config_type`, but for those named in `skip` or already there."""
    hints = typing.get_type_hints(config_type)
    taken = {action.dest for action in parser._actions}  # pyright: ignore[reportPrivateUsage]
    for each in fields(config_type):
        if each.name in skip or each.name in taken:
            continue
        assert each.default is not MISSING, f"{config_type.__name__}.{each.name} has no default"
        _add_flag(group_of(parser, each.name), each.name, hints[each.name], each.default, each.metadata)


def require(condition: bool, flag: str, value: object, rule: str) -> None:
    """Raises `ConfigError` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"--{flag.replace('_', '-')}={value}: {rule}", field=flag)


class CommandParser(argparse.ArgumentParser):
    """Parser of a command: takes no abbreviations, reads `--config`, and raises `ConfigError`."""

    def __init__(self, *, prog: str, description: str | None, positional: str = "") -> None:
        usage = f"{prog} {positional} [flags]" if positional else f"{prog} [flags]"
        super().__init__(prog=prog, usage=usage, description=description, allow_abbrev=False)
        add_config_flag(self)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As argparse does it, of the words that the file of `--config` stands for as well."""
        options = super().parse_args(with_config_file(self, args or ()), namespace)
        vars(options).pop("config", None)
        return options

    def error(self, message: str) -> NoReturn:
        """Names the flag at fault, where argparse does."""
        flag = re.match(r"argument --([\w-]+)", message)
        raise ConfigError(message, field=flag[1].replace("-", "_") if flag else "")


def _add_flag(parser: Any, name: str, hint: Any, default: Any, metadata: typing.Mapping[str, Any]) -> None:
    flag = "--" + name.replace("_", "-")
    shown_default = "" if default in (None, "", ()) else f" (default: {default})"
    help_text = f"{metadata['help']}{shown_default}".replace("%", "%%")
    hint = _without_none(hint)
    if hint is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=help_text)
    elif typing.get_origin(hint) is tuple:
        parser.add_argument(
            flag, type=_comma_list, action=_Extend, default=default, help=help_text, metavar="A[,B…]"
        )
    else:
        names = (flag, *metadata["aliases"])
        choices = metadata["choices"]
        metavar = None if choices else _METAVARS.get(hint, "TEXT")
        parser.add_argument(
            *names, dest=name, type=hint, default=default, help=help_text, choices=choices, metavar=metavar
        )


class _Extend(argparse.Action):
    """A flag that is given twice means both lists."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_rest: Any
    ) -> None:
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, tuple(values) if given is self.default else (*given, *values))


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(arg for arg in typing.get_args(hint) if arg is not type(None))
    return hint


def _comma_list(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)
