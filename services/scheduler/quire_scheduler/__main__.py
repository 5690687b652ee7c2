"""The scheduler process: `python -m quire_scheduler`."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
import uuid

import uvloop

from quire import garbage
from quire.config import SchedulerConfig
from quire.config.flag import parse
from quire.errors import ConfigError
from quire.rpc.ending import end_tasks
from quire.rpc.server import HealthReporter, add_health_and_reflection, bind, build_server
from quire.telemetry.logs import configure_logging
from quire.telemetry.tracing import configure_tracing
from quire.v1 import scheduler_pb2_grpc, worker_pb2_grpc
from quire_scheduler.core import CoreLimits, Scheduler
from quire_scheduler.data_plane import DataPlane
from quire_scheduler.loop import EngineLoop
from quire_scheduler.registry import Registry
from quire_scheduler.service import SchedulerService

logger = logging.getLogger(__name__)

_SERVICES = ("quire.v1.SchedulerService", "quire.v1.WorkerRegistryService")
_HEALTH_INTERVAL_S = 0.5


async def serve(config: SchedulerConfig) -> None:
    """Serves until told to stop, then finishes what runs."""
    core = Scheduler(
        CoreLimits(
            policy=config.scheduling_policy,
            enable_prefix_caching=config.enable_prefix_caching,
            pipeline_depth=config.pipeline_depth,
            max_num_requests=config.max_num_requests,
            max_num_prefill_tokens_while_decoding=config.max_num_prefill_tokens_while_decoding,
        )
    )
    data_plane = DataPlane(config.host, config.data_port)
    # Epochs grow over restarts because they start from the clock, in milliseconds.
    tracing = configure_tracing("scheduler")
    engine = EngineLoop(core, data_plane, time.time_ns() // 1_000_000, tracing)
    registry = Registry(config, engine)
    service = SchedulerService(config, engine, registry, uuid.uuid4().hex, tracing)
    server = build_server()
    scheduler_pb2_grpc.add_SchedulerServiceServicer_to_server(service, server)
    worker_pb2_grpc.add_WorkerRegistryServiceServicer_to_server(registry, server)
    health = add_health_and_reflection(server, _SERVICES)
    port = bind(server, config.host, config.grpc_port)
    stop = _stop_event()
    await server.start()
    tasks = [
        asyncio.create_task(engine.run()),
        asyncio.create_task(registry.watch()),
        asyncio.create_task(_report_health(engine, health)),
    ]
    garbage.settle()
    print(
        "READY",
        json.dumps(
            {
                "service": "scheduler",
                "grpc": f"{config.host}:{port}",
                "data": f"tcp://{config.host}:{data_plane.port}",
            }
        ),
        flush=True,
    )
    await _until_stopped(stop, tasks)
    await service.drain(config.drain_timeout_ms / 1000)
    await server.stop(grace=1.0)
    await end_tasks(tasks)
    data_plane.close()
    tracing.shutdown()


def main() -> None:
    """Parses flags and serves."""
    configure_logging("scheduler")
    try:
        config = parse(SchedulerConfig, sys.argv[1:], "python -m quire_scheduler")
        with contextlib.suppress(KeyboardInterrupt):
            uvloop.run(serve(config))
    except ConfigError as error:
        sys.exit(f"quire_scheduler: {error.message}")


def _stop_event() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


async def _until_stopped(stop: asyncio.Event, tasks: "list[asyncio.Task[None]]") -> None:
    """Waits for the signal; a task that ends first has failed, and its failure is raised."""
    waiter = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {waiter}:
        task.result()


async def _report_health(engine: EngineLoop, health: HealthReporter) -> None:
    """Health means that steps make progress, not that a process exists."""
    await health.set("quire.v1.WorkerRegistryService", True)
    while True:
        serving = engine.makes_progress
        await health.set("", serving)
        await health.set("quire.v1.SchedulerService", serving)
        await asyncio.sleep(_HEALTH_INTERVAL_S)


if __name__ == "__main__":
    main()
