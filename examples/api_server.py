"""A server of one's own in a few lines: FastAPI around AsyncLLMEngine, with a middleware and an endpoint that nobody else has.

python examples/api_server.py --model /path/to/model --port 8001          (or --address host:50051 to share a stack)
curl -N localhost:8001/continue -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:", "max_tokens": 50}'
"""

import argparse
import time
from collections.abc import AsyncIterator
from dataclasses import fields

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from quire import AsyncEngineArgs, AsyncLLMEngine, QuireError, RequestOutputKind, SamplingParams
from quire.errors import InvalidRequest


def build_app(engine: AsyncLLMEngine) -> FastAPI:
    """The program's own face; the engine is all that it has of Quire."""
    app = FastAPI(title="A server of one's own")

    @app.middleware("http")
    async def timed(request: Request, call_next):
        began = time.perf_counter()
        response = await call_next(request)
        response.headers["x-first-byte-ms"] = f"{1000 * (time.perf_counter() - began):.1f}"
        return response

    @app.exception_handler(QuireError)
    async def refuse(_request: Request, error: QuireError) -> JSONResponse:
        return JSONResponse({"error": error.message, "field": error.field}, error.http_status)

    @app.post("/continue")
    async def continue_text(body: dict) -> StreamingResponse:
        prompt = body.pop("prompt", "")
        for name in body.keys() - {field.name for field in fields(SamplingParams)}:
            raise InvalidRequest(f"{name}: SamplingParams has no such field", field=name)
        params = SamplingParams(**body | {"output_kind": RequestOutputKind.DELTA})
        outputs = engine.generate(prompt, params)
        first = await anext(outputs)  # what is refused is refused here, while the status can still say so

        async def pieces() -> AsyncIterator[str]:
            yield first.outputs[0].text
            async for output in outputs:
                yield output.outputs[0].text

        return StreamingResponse(pieces(), media_type="text/plain")

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8001)
    options = AsyncEngineArgs.add_cli_args(parser).parse_args()
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs.from_cli_args(options))
    uvicorn.run(build_app(engine), host=options.host, port=options.port)
