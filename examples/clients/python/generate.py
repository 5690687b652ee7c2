"""Streams a generation from Quire in Python: the generated stubs and nothing else.

python generate.py 127.0.0.1:50051 "ROMEO:"
"""

import os
import sys

import grpc

from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2


def main(address: str = "127.0.0.1:50051", text: str = "ROMEO:\n") -> None:
    """One request, printed as it comes."""
    key = os.environ.get("QUIRE_API_KEY")
    metadata = [("authorization", f"Bearer {key}")] if key else []
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        params = sampling_pb2.SamplingParams(max_tokens=100, temperature=0.8, seed=7)
        request = generation_pb2.GenerateRequest(text=text, sampling_params=params)
        try:
            for response in stub.Generate(request, metadata=metadata):
                print("".join(delta.text for delta in response.outputs), end="", flush=True)
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
