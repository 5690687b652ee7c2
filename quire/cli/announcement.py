"""What `quire serve` says once a model can be generated with: the addresses, and a sample if asked.

A module of its own because it takes gRPC, which is imported while the processes start.
"""

import asyncio
import sys

import grpc

from quire.cli.generate import stream_to_terminal
from quire.launcher.stack import Stack
from quire.rpc.channel import key_metadata, open_channel
from quire.rpc.tls import ClientTls
from quire.sampling_params import SamplingParams
from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

_READY_POLL_S = 0.01
_SAMPLE_PROMPT = "ROMEO:\n"


async def announce(stack: Stack, tls: ClientTls | None, api_key: str, *, show_sample: bool) -> None:
    """Waits until a model can be generated with, prints the ready line and, if asked, a sample."""
    async with open_channel(stack.address, tls=tls) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        while not (models := await _ready_models(stub, api_key)):
            await asyncio.sleep(_READY_POLL_S)
    print(
        f"Quire is ready: {', '.join(models)} on grpc {stack.address} {'with TLS ' if tls else ''}"
        + (f"and {stack.http_url} " if stack.http_url else "")
        + f"(scheduler {stack.scheduler_address}, worker {stack.worker_address})",
        flush=True,
    )
    if show_sample:
        print(f"\nA sample, streamed through the three processes:\n\n{_SAMPLE_PROMPT}", end="", flush=True)
        params = SamplingParams.from_proto(sampling_pb2.SamplingParams(max_tokens=120))
        await stream_to_terminal(stack.address, _SAMPLE_PROMPT, params, api_key=api_key, tls=tls)
        quire = sys.argv[0] if sys.argv[0].endswith("quire") else "quire"
        command = f'{quire} generate "JULIET:" --address {stack.address}'
        if tls is not None:
            command += f" --ssl-ca-certs {tls.ca_certs} --ssl-server-name {tls.server_name}"
        print(f"\nTry it from another terminal:  {command}", flush=True)
        if stack.http_url:
            print(f"or point any OpenAI client at  {stack.http_url}/v1", flush=True)


async def _ready_models(stub: generation_pb2_grpc.GenerationServiceStub, api_key: str) -> list[str]:
    try:
        answer = await stub.ListModels(generation_pb2.ListModelsRequest(), metadata=key_metadata(api_key))
    except grpc.aio.AioRpcError:
        return []
    return [model.id for model in answer.models if model.ready]
