"""A YAML file with the names of a command's flags, for `--config`. What the command line says wins over it.

Knows no flag by name: it asks the parser.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quire.errors import ConfigError


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--config`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with names of these flags and their values; a flag given here wins over the file.",
    )


def with_config_file(parser: argparse.ArgumentParser, argv: Sequence[str]) -> list[str]:
    """`argv` with the words that its `--config` file stands for put in front, and without `--config` itself.

    Raises `ConfigError` for a file that cannot be read, and for a key that is no flag, naming file and key.
    """
    file, rest = _taken_out(argv)
    if file is None:
        return rest
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    words: list[str] = []
    for key, value in _read(file).items():
        action = _action_of(parser, key)
        if action is None:
            raise ConfigError(f"{file}: {key}: `{parser.prog}` has no flag of that name", field=str(key))
        # The command line takes a flag's place whole: lists of both would otherwise add up.
        if given.isdisjoint(action.option_strings):
            words += _words(file, str(key), action, value)
    return [*words, *rest]


def _taken_out(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    file: str | None = None
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            file = next(words, None)
            if file is None:
                raise ConfigError("--config: a file must follow", field="config")
        elif word.startswith("--config="):
            file = word.partition("=")[2]
        else:
            rest.append(word)
    return file, rest


def _read(file: str) -> dict[Any, Any]:
    import yaml

    try:
        document = yaml.safe_load(Path(file).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config={file}: {error}", field="config") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"--config={file}: must hold names and values", field="config")
    return document


def _action_of(parser: argparse.ArgumentParser, key: object) -> argparse.Action | None:
    flag = "--" + str(key).replace("_", "-")
    if flag in ("--help", "--config"):
        return None
    return parser._option_string_actions.get(flag)  # pyright: ignore[reportPrivateUsage]


def _words(file: str, key: str, action: argparse.Action, value: Any) -> list[str]:
    """The words of a command line that give the flag its value; none for null, which is as if it were not there."""
    flag = "--" + key.replace("_", "-")
    if value is None:
        return []
    if isinstance(value, bool):
        return _switch(file, key, flag, action, value)
    if action.nargs == 0:
        raise ConfigError(f"{file}: {key}: {value!r} must be true or false", field=key)
    if not isinstance(value, list):
        return [f"{flag}={_text(value)}"]
    if action.nargs in ("*", "+"):
        return [flag, *map(_text, value)]
    if action.metavar == "A[,B…]":
        return [f"{flag}={','.join(map(_text, value))}"]
    return [f"{flag}={_text(each)}" for each in value]


def _switch(file: str, key: str, flag: str, action: argparse.Action, value: bool) -> list[str]:
    """`--x`, or `--no-x` where there is one; false for a switch without it is how it stands anyway."""
    negated = flag.replace("--", "--no-", 1)
    if negated in action.option_strings:
        return [flag if value else negated]
    if action.nargs == 0:
        return [flag] if value else []
    if action.nargs == "?":
        return [f"{flag}={_text(value)}"] if value else []
    raise ConfigError(f"{file}: {key}: {value!r} is no value of {flag}", field=key)


def _text(value: Any) -> str:
    """As on a command line; what has parts goes as JSON."""
    if isinstance(value, bool | dict):
        return json.dumps(value)
    return str(value)
