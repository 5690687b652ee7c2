"""Entry point of the `quire` command: picks the subcommand."""

import sys
from collections.abc import Sequence

from quire.errors import QuireError

_USAGE = """usage: quire COMMAND [flags]

  serve      start the stack on this machine: scheduler, worker and tokenizer processes
  generate   stream a generation from a running server
  health     ask a process whether it serves

`quire COMMAND --help` explains a command's flags."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a subcommand and exits with its status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "help"):
        print(_USAGE)
        return
    try:
        match command:
            case "serve":
                from quire.cli.serve import run
            case "generate":
                from quire.cli.generate import run
            case "health":
                from quire.cli.health import run
            case _:
                sys.exit(f"quire: {command!r} is no command\n\n{_USAGE}")
        sys.exit(run(arguments[1:]))
    except QuireError as error:
        sys.exit(f"quire {command}: {error.message}")


if __name__ == "__main__":
    main()
