"""The tokenizer process: `python -m quire_tokenizer`."""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvloop

from quire import garbage
from quire.config import TokenizerConfig
from quire.config.api_key import load_api_keys
from quire.config.flag import parse
from quire.errors import ConfigError
from quire.rpc.ending import end_tasks
from quire.rpc.server import HealthReporter, add_health_and_reflection, bind, build_server
from quire.rpc.tls import server_credentials
from quire.telemetry.logs import configure_logging
from quire.telemetry.tracing import configure_tracing
from quire.v1 import generation_pb2_grpc, tokenizer_pb2_grpc
from quire_tokenizer.credential import Credentials
from quire_tokenizer.credential_guard import CredentialGuard
from quire_tokenizer.engine import GenerationEngine
from quire_tokenizer.model_shelf import ModelShelf
from quire_tokenizer.openai.desk import Desk
from quire_tokenizer.openai.route import build_app
from quire_tokenizer.openai.server import HttpServer
from quire_tokenizer.router import Router
from quire_tokenizer.scheduler_link import SchedulerLink
from quire_tokenizer.service import GenerationService
from quire_tokenizer.tokenizer_service import TokenizerService

logger = logging.getLogger(__name__)

_SERVICES = ("quire.v1.GenerationService", "quire.v1.TokenizerService")
_NUM_ENCODING_THREADS = 2
_POLL_S = 0.05


async def serve(config: TokenizerConfig) -> None:
    """Serves until told to stop, then finishes the open streams."""
    executor = ThreadPoolExecutor(_NUM_ENCODING_THREADS, thread_name_prefix="encode")
    shelf = ModelShelf(config, executor)
    peer_id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"

    def take_state(link: SchedulerLink) -> None:
        shelf.learn(link.state)
        if link.can_serve:
            router.gather(link)

    links = [
        SchedulerLink(address, f"{peer_id}-{number}", take_state)
        for number, address in enumerate(config.scheduler)
    ]
    router = Router(links)
    tracing = configure_tracing("tokenizer")
    engine = GenerationEngine(shelf, router, config.max_num_requests, tracing)
    tls = server_credentials(config.ssl_certfile, config.ssl_keyfile) if config.ssl_certfile else None
    credentials = Credentials(load_api_keys(config.api_key, config.api_key_file))
    server = build_server(
        interceptors=[CredentialGuard(credentials)],
        max_message_bytes=config.max_message_bytes,
        reuse_port=config.reuse_port,
    )
    generation_pb2_grpc.add_GenerationServiceServicer_to_server(
        GenerationService(engine, credentials), server
    )
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(TokenizerService(shelf, engine), server)
    health = add_health_and_reflection(server, _SERVICES)
    app = build_app(Desk.open(engine, shelf, config), credentials) if config.http else None
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    tasks = [asyncio.create_task(link.run()) for link in links]
    tasks.append(asyncio.create_task(_report_health(router, health)))
    waiter = asyncio.create_task(stop.wait())
    if config.reuse_port:
        await _until_ready(router, [waiter, *tasks])
    # Both ports are bound before either serves: a busy one ends the process with nothing to take back.
    http = HttpServer(app, config) if app is not None else None
    port = bind(server, config.host, config.grpc_port, credentials=tls)
    facts = {"service": "tokenizer", "grpc": f"{config.host}:{port}"}
    await server.start()
    if http is not None:
        await http.start()
        facts["http"] = http.url
    garbage.settle()
    print("READY", json.dumps(facts), flush=True)
    done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {waiter}:
        task.result()
    await _drain(engine, config.drain_timeout_ms / 1000)
    await asyncio.gather(server.stop(grace=1.0), *([http.stop()] if http is not None else []))
    await end_tasks(tasks)
    executor.shutdown(cancel_futures=True)
    tracing.shutdown()


def main() -> None:
    """Parses flags and serves."""
    configure_logging("tokenizer")
    # The thread pool is ours; the library's own would fight the other processes for the cores.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        uvloop.run(serve(parse(TokenizerConfig, sys.argv[1:], "python -m quire_tokenizer")))
    except ConfigError as error:
        sys.exit(f"quire_tokenizer: {error.message}")


async def _until_ready(router: Router, tasks: "list[asyncio.Task[Any]]") -> None:
    """Waits for a scheduler, or for a task to end: the kernel spreads connections over all that share a port, ready or not."""
    while not router.ready and not any(task.done() for task in tasks):
        await asyncio.sleep(_POLL_S)


async def _report_health(router: Router, health: HealthReporter) -> None:
    """Liveness never depends on a scheduler, because killing this process would kill its requests; readiness does."""
    await health.set("", True)
    await health.set("quire.v1.TokenizerService", True)
    while True:
        await health.set("quire.v1.GenerationService", router.ready)
        await asyncio.sleep(_POLL_S)


async def _drain(engine: GenerationEngine, limit_s: float) -> None:
    deadline = asyncio.get_running_loop().time() + limit_s
    while engine.num_live and asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(_POLL_S)


if __name__ == "__main__":
    main()
