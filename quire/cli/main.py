"""Entry point of the `quire` command: picks the subcommand."""

import importlib
import os
import signal
import sys
from collections.abc import Sequence

from quire.errors import QuireError

_COMMANDS = {
    "serve": "quire.cli.serve",
    "generate": "quire.cli.generate",
    "chat": "quire.cli.chat",
    "bench": "quire.cli.bench",
    "health": "quire.cli.health",
    "env": "quire.cli.env",
}

_USAGE = """usage: quire COMMAND [flags]

Serve
  serve         start the stack on this machine: scheduler, worker and tokenizer processes

Talk to a running server
  generate      stream the continuation of a prompt
  chat          hold a conversation
  health        ask a process whether it serves

Measure and look
  bench serve   load a server and report latencies and throughput
  env           show what was found on this machine and what would be used

Every command takes `--config FILE`, a YAML file with the names of its flags.
`quire COMMAND --help` explains a command's flags."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand and exits with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return
    if command not in _COMMANDS:
        sys.exit(f"quire: {command!r} is no command\n\n{_USAGE}")
    try:
        # Imported when it runs: the command starts fast, and needs what it uses only.
        status = importlib.import_module(_COMMANDS[command]).run(arguments[1:])
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        # Who read has enough (`quire generate TEXT | head`). What is left must not be written on the way out either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except QuireError as error:
        sys.exit(f"quire {command}: {error.message}")


if __name__ == "__main__":
    main()
