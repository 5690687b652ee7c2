"""`quire chat`: a conversation with a running server. /system TEXT sets the system message, /reset begins anew, /exit ends."""

import asyncio
import importlib
import sys
from collections.abc import Sequence

from quire.cli.generate import DEFAULT_ADDRESS
from quire.cli.sampling_flag import add_sampling_flags, given_params, sampling_params
from quire.cli.server_flag import add_tls_flags, tls_of
from quire.client.chat_stream import ChatServer, GrpcChat, HttpChat, Message
from quire.config.flag import CommandParser
from quire.errors import QuireError

_HELP = "/system TEXT sets the system message and begins anew, /reset begins anew, /exit ends; Ctrl-C stops an answer."


def run(argv: Sequence[str]) -> int:
    """Parses flags and converses; the status is 1 when an answer failed and nobody was there to see it."""
    options = _parser().parse_args(argv)
    params = sampling_params(options)
    is_terminal = sys.stdin.isatty()
    with asyncio.Runner() as runner:

        async def connect() -> ChatServer:
            if options.address.startswith(("http://", "https://")):
                given = {**given_params(options), "max_tokens": params.max_tokens}
                return HttpChat(options.address, options.model, given, options.api_key, tls=tls_of(options))
            return GrpcChat(options.address, options.model, params, options.api_key, tls=tls_of(options))

        server = runner.run(connect())
        chat = Chat(server, runner, options.system)
        if is_terminal:
            importlib.import_module("readline")  # gives the prompt its keys and its history

            print(_HELP)
        try:
            chat.converse("> " if is_terminal else "")
        finally:
            runner.run(server.close())
    return 1 if chat.num_failed and not is_terminal else 0


class Chat:
    """One conversation at the terminal."""

    def __init__(self, server: ChatServer, runner: asyncio.Runner, system: str) -> None:
        self._server = server
        self._runner = runner
        self._system = system
        self._messages: list[Message] = []
        self.num_failed = 0
        """Answers that ended with an error."""
        self._reset()

    def converse(self, prompt: str) -> None:
        """Reads lines until /exit or the end of the input."""
        while True:
            try:
                line = input(prompt).strip()
            except (EOFError, KeyboardInterrupt):
                print(end="\n" if prompt else "")
                return
            command, _, rest = line.partition(" ")
            if command == "/exit":
                return
            if command == "/reset":
                self._reset()
            elif command == "/system":
                self._system = rest.strip()
                self._reset()
            elif command.startswith("/"):
                print(_HELP)
            elif line:
                self._ask(line)

    def _reset(self) -> None:
        self._messages = [Message("system", self._system)] if self._system else []

    def _ask(self, line: str) -> None:
        """Shows the answer as it comes; what was shown of one that was stopped stays part of the conversation."""
        self._messages.append(Message("user", line))
        said: list[str] = []
        try:
            self._runner.run(self._show(said))
        except KeyboardInterrupt:
            print(" [stopped]")
        except QuireError as error:
            self._messages.pop()
            self.num_failed += 1
            print(f"quire chat: {error.message}", file=sys.stderr)
            return
        self._messages.append(Message("assistant", "".join(said)))

    async def _show(self, said: list[str]) -> None:
        async for piece in self._server.answer(self._messages):
            said.append(piece)
            print(piece, end="", flush=True)
        print()


def _parser() -> CommandParser:
    parser = CommandParser(prog="quire chat", description=__doc__)
    parser.add_argument("--system", default="", metavar="TEXT", help="System message to begin with.")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--address",
        default=DEFAULT_ADDRESS,
        help="A tokenizer service, host:port, or the OpenAI API of an http:// address (default: %(default)s).",
    )
    server.add_argument("--model", default="", help="Served model name; default: the only or the first one.")
    server.add_argument("--api-key", default="", help="Key, where the server asks for one.")
    add_tls_flags(server)
    add_sampling_flags(parser, max_tokens=1024)
    return parser
