"""A worker that has loaded its model, serving: everything that runs beside its step loop, started and stopped in order."""

import asyncio
import json
import os
import signal
import socket
import sys
import uuid
from typing import cast

from quire import garbage
from quire.config import WorkerConfig
from quire.rpc.ending import end_tasks
from quire.rpc.server import add_health_and_reflection, bind, build_server
from quire.telemetry.tracing import configure_tracing
from quire.v1 import worker_pb2, worker_pb2_grpc
from quire.wire import PROTOCOL_VERSION
from quire_worker.loading import LoadedModel
from quire_worker.registration import Registration
from quire_worker.runner import Runner
from quire_worker.service import WorkerService
from quire_worker.step_loop import StepLoop
from quire_worker.traced_runner import TracedRunner


async def serve(config: WorkerConfig, loaded: LoadedModel) -> None:
    """Serves until told to stop."""
    worker_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    server = build_server()
    health = add_health_and_reflection(server, ("quire.v1.WorkerService",))
    port = bind(server, config.host, config.grpc_port)
    tracing = configure_tracing("worker")
    # Whoever executes plans needs the same three members of either.
    runner = cast("Runner", TracedRunner(loaded.runner, tracing)) if tracing.enabled else loaded.runner
    loop = StepLoop(runner)
    registration = Registration(
        config.scheduler,
        worker_pb2.WorkerRegistration(
            protocol_version=PROTOCOL_VERSION,
            worker_id=worker_id,
            group_name=config.group_name,
            world_size=1,
            model=loaded.spec,
            capacity=loaded.capacity,
            grpc_address=f"{config.host}:{port}",
        ),
        loop,
    )
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(
        WorkerService(worker_id, loaded, loop, registration), server
    )
    await server.start()
    await health.set("", True)
    await health.set("quire.v1.WorkerService", True)
    loop.start()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # A worker whose step loop is gone must not go on saying that it lives.
    duties = [
        asyncio.create_task(registration.run()),
        asyncio.create_task(stop.wait()),
        asyncio.create_task(asyncio.to_thread(loop.wait)),
    ]
    garbage.settle()
    facts = {"service": "worker", "grpc": f"{config.host}:{port}"}
    sys.stdout.write(f"READY {json.dumps(facts)}\n")
    sys.stdout.flush()
    done, pending = await asyncio.wait(duties, return_when=asyncio.FIRST_COMPLETED)
    await end_tasks(pending)
    await server.stop(grace=1.0)
    loop.stop()
    tracing.shutdown()
    for task in done:
        task.result()
