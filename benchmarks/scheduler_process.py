"""Processor time of the scheduler process per step, over gRPC and ZeroMQ, beside its budget of 0.3 ms + 2 µs per request.

    python benchmarks/scheduler_process.py

A worker that answers at once, the scheduler and one attached peer, which only counts, are processes of their own. Where
`scheduler_step.py` times the core and the codecs, this has the sockets, the event loop and the Attach stream as well.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.stream_rate import Process
from quire.rpc.channel import open_channel
from quire.v1 import sampling_pb2, scheduler_pb2, scheduler_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from tests.doubles.echo_worker import MAX_MODEL_LEN

_PROMPT_LEN = 8
_WORKER = str(Path(__file__).with_name("stream_rate.py"))


async def measure() -> None:
    """Prints the table."""
    print(
        f"{'running':>8} {'steps/s':>9} {'tokens/s':>10} {'CPU ms/step':>12} {'budget ms':>10} {'ratio':>6}"
    )
    for num_requests in (1, 64, 256, 1024):
        async with contextlib.AsyncExitStack() as stack:
            scheduler = await stack.enter_async_context(
                Process("scheduler", ["-m", "quire_scheduler", "--grpc-port", "0"])
            )
            address = scheduler.facts["grpc"]
            await stack.enter_async_context(
                Process("worker", [_WORKER, "worker", address, str(num_requests), "0"])
            )
            peer = await stack.enter_async_context(Process("peer", [__file__, address, str(num_requests)]))
            cpu_began_s = scheduler.cpu_s()
            report = json.loads(await peer.rest())
            cpu_s = scheduler.cpu_s() - cpu_began_s
        cost_ms, budget_ms = 1e3 * cpu_s / report["num_steps"], 0.3 + 0.002 * num_requests
        row = f"{num_requests:>8} {report['num_steps'] / report['elapsed_s']:>9,.0f}"
        row += f" {report['num_tokens'] / report['elapsed_s']:>10,.0f} {cost_ms:>12.3f} {budget_ms:>10.3f}"
        print(f"{row} {cost_ms / budget_ms:>6.2f}", flush=True)


async def run_peer(address: str, num_requests: int) -> None:
    """Attaches, hands the requests in at once, counts until all have ended, and reports."""
    async with open_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
        while not (await stub.GetStats(scheduler_pb2.GetStatsRequest())).num_worker_groups:
            await asyncio.sleep(0.05)
        print("READY {}", flush=True)
        began, num_tokens, num_live = perf_counter(), 0, num_requests
        call = stub.Attach(_requests(num_requests))
        async for response in call:
            num_tokens += len(response.tokens.token_ids)
            num_live -= len(response.tokens.finished_rows)
            if not num_live:
                break
        elapsed_s = perf_counter() - began
        num_steps = (await stub.GetStats(scheduler_pb2.GetStatsRequest())).num_steps
        call.cancel()
    assert num_tokens == num_requests * (MAX_MODEL_LEN - _PROMPT_LEN), f"{num_tokens} tokens"
    print(json.dumps({"num_steps": num_steps, "num_tokens": num_tokens, "elapsed_s": elapsed_s}), flush=True)


async def _requests(num_requests: int) -> AsyncIterator[scheduler_pb2.AttachRequest]:
    hello = scheduler_pb2.AttachHello(protocol_version=PROTOCOL_VERSION, peer_id="benchmark")
    yield scheduler_pb2.AttachRequest(hello=hello)
    submit = scheduler_pb2.SubmitFrame()
    for handle in range(num_requests):
        submit.admissions.add(
            handle=handle,
            request_id=str(handle),
            prompt_token_ids=[handle % 900 + 1] * _PROMPT_LEN,
            sampling_params=sampling_pb2.SamplingParams(
                n=1, seed=7, ignore_eos=True, max_tokens=MAX_MODEL_LEN - _PROMPT_LEN
            ),
        )
    yield scheduler_pb2.AttachRequest(submit=submit)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(run_peer(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else measure())
