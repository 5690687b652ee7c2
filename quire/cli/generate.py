"""`quire generate`: streams a generation from a running server to the terminal."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

import grpc

from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.status import error_from_rpc
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.v1 import generation_pb2, generation_pb2_grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"


def run(argv: Sequence[str]) -> int:
    """Parses flags and streams."""
    arguments = _parser().parse_args(list(argv))
    params = SamplingParams(
        max_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        seed=arguments.seed,
        stop=arguments.stop,
        min_p=None,
        repetition_penalty=None,
        output_kind=RequestOutputKind.DELTA,
    )
    asyncio.run(
        stream_to_terminal(
            arguments.address, arguments.text, params, model=arguments.model, api_key=arguments.api_key
        )
    )
    return 0


async def stream_to_terminal(
    address: str, text: str, params: SamplingParams, *, model: str = "", api_key: str = ""
) -> None:
    """Writes the text as it comes. Raises the `QuireError` that the server answers with."""
    request = generation_pb2.GenerateRequest(text=text, model=model, sampling_params=params.to_proto())
    async with open_channel(address) as channel:
        try:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            async for response in stub.Generate(request, metadata=key_metadata(api_key)):
                for delta in response.outputs:
                    sys.stdout.write(delta.text)
                sys.stdout.flush()
        except grpc.aio.AioRpcError as error:
            raise error_from_rpc(error) from error
    sys.stdout.write("\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quire generate", description=__doc__)
    parser.add_argument("text", help="The prompt.")
    parser.add_argument(
        "--address", default=DEFAULT_ADDRESS, help="A tokenizer service, host:port (default: %(default)s)."
    )
    parser.add_argument("--model", default="", help="Served model name; needed where several are served.")
    parser.add_argument("--api-key", default="", help="The key that the server asks for, if it does.")
    parser.add_argument(
        "--max-tokens", type=int, default=200, help="Most tokens to generate (default: %(default)s)."
    )
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the model's).")
    parser.add_argument("--top-p", type=float, help="Nucleus size (default: the model's).")
    parser.add_argument("--top-k", type=int, help="Candidates per token (default: the model's).")
    parser.add_argument("--seed", type=int, help="Seed, for a text that can be had again (default: drawn).")
    parser.add_argument(
        "--stop", action="append", default=[], help="String that ends the text; may be repeated."
    )
    return parser
