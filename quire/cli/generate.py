"""`quire generate`: continues a prompt on a running server and streams the text to the terminal."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace

import grpc

from quire.cli.logprob_table import logprob_table
from quire.cli.sampling_flag import add_sampling_flags, sampling_params
from quire.cli.server_flag import add_tls_flags, tls_of
from quire.config.flag import CommandParser
from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.status import error_from_rpc
from quire.rpc.tls import ClientTls
from quire.sampling_params import SamplingParams
from quire.v1 import generation_pb2, generation_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


def run(argv: Sequence[str]) -> int:
    """Parses flags and generates."""
    options = _parser().parse_args(argv)
    params = replace(
        sampling_params(options), logprobs=options.logprobs, prompt_logprobs=options.prompt_logprobs
    )
    work = stream_to_terminal(
        options.address,
        options.text,
        params,
        model=options.model,
        api_key=options.api_key,
        tls=tls_of(options),
        stream=options.stream and params.n == 1,
    )
    asyncio.run(work)
    return 0


async def stream_to_terminal(
    address: str,
    text: str,
    params: SamplingParams,
    *,
    model: str = "",
    api_key: str = "",
    tls: ClientTls | None = None,
    stream: bool = True,
) -> None:
    """Writes the text as it comes, or each sequence once all have ended; then the log-probabilities that were asked for.

    Raises the server's `QuireError`.
    """
    request = generation_pb2.GenerateRequest(text=text, model=model, sampling_params=params.to_proto())
    texts = [""] * params.n
    of_prompt: list[generation_pb2.TokenLogprobs] = []
    of_outputs: list[list[generation_pb2.TokenLogprobs]] = [[] for _ in texts]
    async with open_channel(address, tls=tls) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        try:
            async for response in stub.Generate(request, metadata=key_metadata(api_key)):
                of_prompt += response.prompt_logprobs
                for delta in response.outputs:
                    of_outputs[delta.index] += delta.logprobs
                    texts[delta.index] += delta.text
                    if stream:
                        sys.stdout.write(delta.text)
                sys.stdout.flush()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
    if stream:
        print()
    else:
        print("\n".join(texts if params.n == 1 else (f"[{i}] {each}" for i, each in enumerate(texts))))
    for heading, tokens in (("prompt", of_prompt), *zip(_names(params.n), of_outputs, strict=True)):
        if tokens:
            print("\n" + logprob_table(f"log-probability, rank and text of the {heading}'s tokens:", tokens))


def _names(num_outputs: int) -> list[str]:
    return ["output"] if num_outputs == 1 else [f"output [{index}]" for index in range(num_outputs)]


def _parser() -> CommandParser:
    parser = CommandParser(prog="quire generate", description=__doc__, positional="TEXT")
    parser.add_argument("text", metavar="TEXT", help="The prompt.")
    parser.add_argument(
        "--stream",
        action="store_true",
        default=True,
        help="Write the text as it comes; the default, where one sequence is asked for.",
    )
    parser.add_argument(
        "--no-stream", dest="stream", action="store_false", help="Write the text once it is complete."
    )
    reports = parser.add_argument_group("log-probabilities", "Listed after the text, token by token.")
    reports.add_argument(
        "--logprobs", type=int, metavar="N", help="Of the output, each token with N alternatives; 0 for none."
    )
    reports.add_argument("--prompt-logprobs", type=int, metavar="N", help="The same of the prompt.")
    server = parser.add_argument_group("server")
    server.add_argument(
        "--address", default=DEFAULT_ADDRESS, help="A tokenizer service, host:port (default: %(default)s)."
    )
    server.add_argument("--model", default="", help="Served model name; needed where several are served.")
    server.add_argument("--api-key", default="", help="Key, where the server asks for one.")
    add_tls_flags(server)
    add_sampling_flags(parser, max_tokens=200)
    return parser
