"""Messages per second from a worker that answers at once, through the scheduler process, to 64 gRPC streams.

    python benchmarks/stream_rate.py

Measures SchedulerService.Generate, without a tokenizer process in between. The worker, the scheduler and the client
are three processes. Tokens that share a message were coalesced because the client lagged; both counts are printed.
"""

import asyncio
import contextlib
import sys
from pathlib import Path
from time import perf_counter

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.doubles.echo_worker import EchoWorker
from tests.scheduler.stack import Stack, request_of, running_stack

_NUM_STREAMS = 64
_TOKENS_PER_STREAM = 400


async def measure() -> None:
    """Prints the rates."""
    async with running_stack() as stack:
        worker = await asyncio.create_subprocess_exec(sys.executable, __file__, stack.grpc)
        try:
            await stack.stats_when(lambda stats: stats.num_worker_groups == 1)
            began = perf_counter()
            counts = await asyncio.gather(*(_stream(stack, number) for number in range(_NUM_STREAMS)))
            elapsed_s = perf_counter() - began
        finally:
            worker.terminate()
            await worker.wait()
    num_tokens = sum(tokens for _messages, tokens in counts)
    num_messages = sum(messages for messages, _tokens in counts)
    print(
        f"{_NUM_STREAMS} streams: {num_tokens / elapsed_s:,.0f} tokens/s in {num_messages / elapsed_s:,.0f} messages/s"
    )


async def _stream(stack: Stack, number: int) -> tuple[int, int]:
    num_messages = num_tokens = 0
    async for response in stack.stub.Generate(request_of([number + 1] * 8, _TOKENS_PER_STREAM)):
        num_messages += 1
        num_tokens += sum(len(output.token_ids) for output in response.outputs)
    assert num_tokens == _TOKENS_PER_STREAM
    return num_messages, num_tokens


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(EchoWorker(sys.argv[1]).run() if len(sys.argv) > 1 else measure())
