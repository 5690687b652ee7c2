"""GenerationService: the gRPC face of the front door."""

from collections.abc import AsyncIterator
from typing import cast

import grpc

from quire.errors import QuireError
from quire.rpc.status import abort_with
from quire.telemetry.tracing import traceparent_in
from quire.v1 import generation_pb2, generation_pb2_grpc
from quire_tokenizer.credential import Credentials
from quire_tokenizer.credential_guard import tenant_of
from quire_tokenizer.engine import GenerationEngine


class GenerationService(generation_pb2_grpc.GenerationServiceServicer):
    """Generate and ListModels."""

    def __init__(self, engine: GenerationEngine, credentials: Credentials) -> None:
        self._engine = engine
        self._credentials = credentials

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        """Streams deltas; when the client goes, the call is cancelled and the request aborted."""
        remaining_s = cast(
            "float | None", context.time_remaining()
        )  # the stubs know no call without a deadline
        deadline_ms = max(1, int(remaining_s * 1000)) if remaining_s is not None else 0
        metadata = context.invocation_metadata()
        try:
            request.tenant = tenant_of(self._credentials, metadata) or request.tenant
            async with self._engine.open(
                request, deadline_ms=deadline_ms, traceparent=traceparent_in(metadata)
            ) as stream:
                prompt_to_show = stream.prompt_token_ids if request.return_prompt_token_ids else ()
                while (response := await stream.next_response()) is not None:
                    if prompt_to_show:
                        response.prompt_token_ids.extend(prompt_to_show)
                        prompt_to_show = ()
                    yield response
        except QuireError as error:
            await abort_with(context, error)

    async def ListModels(
        self, request: generation_pb2.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> generation_pb2.ListModelsResponse:
        """The served models."""
        return generation_pb2.ListModelsResponse(models=self._engine.models())
