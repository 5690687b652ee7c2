"""Calls Quire as grpcurl does: with no proto at hand, from what the server says of itself.

python reflection.py 127.0.0.1:50051
python reflection.py 127.0.0.1:50051 quire.v1.GenerationService/Generate '{"text": "ROMEO:", "sampling_params": {"max_tokens": 20}}'

The same with grpcurl:

grpcurl -plaintext 127.0.0.1:50051 list
grpcurl -plaintext -d '{"text": "ROMEO:"}' 127.0.0.1:50051 quire.v1.GenerationService/Generate
"""

import os
import sys
from collections.abc import Iterator

import grpc
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def main(address: str = "127.0.0.1:50051", method: str = "", body: str = "{}") -> None:
    """Lists the services with their methods, or calls one."""
    with grpc.insecure_channel(address) as plain:
        channel = grpc.intercept_channel(plain, _Key(os.environ.get("QUIRE_API_KEY", "")))
        server = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(server)
        if not method:
            for name in server.get_services():
                print(name, *(each.name for each in pool.FindServiceByName(name).methods))
            return
        service, _, name = method.partition("/")
        try:
            for answer in _call(channel, pool.FindServiceByName(service).FindMethodByName(name), body):
                print(
                    json_format.MessageToJson(answer, preserving_proto_field_name=True, indent=None),
                    flush=True,
                )
        except grpc.RpcError as error:
            sys.exit(f"{error.code().name}: {error.details()}")


def _call(channel: grpc.Channel, method: MethodDescriptor, body: str) -> Iterator[Message]:
    request = json_format.Parse(body, message_factory.GetMessageClass(method.input_type)())
    answer_class = message_factory.GetMessageClass(method.output_type)
    path = f"/{method.containing_service.full_name}/{method.name}"
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = make(
        path,
        request_serializer=type(request).SerializeToString,
        response_deserializer=answer_class.FromString,
    )
    answer = call(request)
    yield from answer if method.server_streaming else [answer]


class _Key(
    grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamStreamClientInterceptor
):
    """Puts the key, if there is one, on every call."""

    def __init__(self, key: str) -> None:
        self._metadata = (("authorization", f"Bearer {key}"),) if key else ()

    def _keyed(self, proceed, details, request):
        return proceed(details._replace(metadata=[*(details.metadata or ()), *self._metadata]), request)

    intercept_unary_unary = intercept_unary_stream = intercept_stream_stream = _keyed


if __name__ == "__main__":
    main(*sys.argv[1:])
