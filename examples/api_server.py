"""A server of one's own: FastAPI around AsyncLLMEngine, with a middleware and an endpoint that nobody else has.

python examples/api_server.py --model /path/to/model --port 8001          (or --address host:50051 to share a stack)
curl -N localhost:8001/continue -H 'Content-Type: application/json' -d '{"prompt": "ROMEO:", "max_tokens": 50}'
"""

import argparse
import time

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from quire import AsyncEngineArgs, AsyncLLMEngine, QuireError, RequestOutputKind, SamplingParams

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--port", type=int, default=8001)
options = AsyncEngineArgs.add_cli_args(parser).parse_args()
engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs.from_cli_args(options))
app = FastAPI(title="A server of one's own")


class Passage(BaseModel, extra="forbid"):
    prompt: str
    max_tokens: int = 100
    temperature: float = 1.0


@app.middleware("http")
async def timed(request: Request, call_next):
    began = time.perf_counter()
    response = await call_next(request)
    response.headers["x-first-byte-ms"] = f"{1000 * (time.perf_counter() - began):.1f}"
    return response


@app.exception_handler(QuireError)
async def refuse(_request: Request, error: QuireError):
    return JSONResponse({"error": error.message, "field": error.field}, error.http_status)


@app.post("/continue")
async def continue_text(passage: Passage):
    params = SamplingParams(**passage.model_dump(exclude={"prompt"}), output_kind=RequestOutputKind.DELTA)
    outputs = engine.generate(passage.prompt, params)
    first = await anext(outputs)  # what is refused is refused here, while the status can still say so

    async def pieces():
        yield first.outputs[0].text
        async for output in outputs:
            yield output.outputs[0].text

    return StreamingResponse(pieces(), media_type="text/plain")


uvicorn.run(app, port=options.port)
