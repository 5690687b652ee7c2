"""The processes of one stack, started all at once and stopped in an order in which nobody waits for one that is gone.

Knows no signal and no terminal.
"""

import argparse
import asyncio

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.errors import ConfigError
from quire.launcher.child import Child
from quire.launcher.option import service_arguments
from quire.rpc.port import ReservedPort

_SCHEDULER_HOST = "127.0.0.1"


class Stack:
    """A scheduler, a worker and the tokenizer processes in front of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._children: list[Child] = []
        self._ports: list[ReservedPort] = []
        self.address = ""
        """Where clients reach its gRPC services, host:port; set by `start`, as are the others."""
        self.http_url = ""
        """Where its HTTP API is; empty if it has none."""
        self.scheduler_address = ""
        self.worker_address = ""

    async def start(self) -> None:
        """Starts all processes. Raises `ConfigError` when one ends before it is ready; `stop` then ends the others."""
        options = self._options
        # Ports are settled before anybody listens, so that no process waits for another one to be told its address.
        scheduler_port = self._reserve(_SCHEDULER_HOST, 0, "--grpc-port")
        self.scheduler_address = f"{_SCHEDULER_HOST}:{scheduler_port}"
        port = self._reserve(options.host, options.grpc_port, "--grpc-port")
        http_port = self._reserve(options.host, options.port, "--port") if options.http else 0
        if http_port == port:
            raise ConfigError(f"--port {port}: --grpc-port is the same; each needs its own", field="port")
        scheduler = self._scheduler(scheduler_port)
        worker = self._worker()
        tokenizers = [
            self._tokenizer(number, port, http_port) for number in range(options.tokenizer_replicas)
        ]
        # The worker first: it takes longest.
        await asyncio.gather(*(child.start() for child in (worker, scheduler, *tokenizers)))
        self.worker_address = worker.facts["grpc"]
        self.address = f"{_client_host(options.host)}:{port}"
        http_url = tokenizers[0].facts.get("http", "")
        self.http_url = http_url.replace(f"//{options.host}:", f"//{_client_host(options.host)}:")

    async def supervise(self) -> None:
        """Restarts whatever ends, until it is cancelled or the stack is stopped."""
        await asyncio.gather(*(child.supervise() for child in self._children))

    async def stop(self) -> None:
        """Ends all processes, also those of a start that failed or was cancelled."""
        # The front door closes first, then the workers, and the scheduler last: nobody is left waiting for an answer.
        for child in reversed(self._children):
            await child.stop()
        for port in self._ports:
            port.close()

    def _reserve(self, host: str, port: int, flag: str) -> int:
        """Keeps a port for as long as the stack runs, also while a process that listened on it is started again."""
        reserved = ReservedPort(host, port, flag)
        self._ports.append(reserved)
        return reserved.number

    def _scheduler(self, port: int) -> Child:
        arguments = [*service_arguments(self._options, SchedulerConfig), "--grpc-port", str(port)]
        return self._child("scheduler", "quire_scheduler", arguments)

    def _worker(self) -> Child:
        arguments = [*service_arguments(self._options, WorkerConfig), "--scheduler", self.scheduler_address]
        return self._child("worker", "quire_worker", arguments)

    def _tokenizer(self, number: int, port: int, http_port: int) -> Child:
        arguments = service_arguments(self._options, TokenizerConfig)
        arguments += ["--scheduler", self.scheduler_address, "--grpc-port", str(port)]
        arguments += ["--port", str(http_port)]
        if self._options.tokenizer_replicas == 1:
            return self._child("tokenizer", "quire_tokenizer", arguments)
        return self._child(f"tokenizer {number}", "quire_tokenizer", [*arguments, "--reuse-port"])

    def _child(self, name: str, module: str, arguments: list[str]) -> Child:
        child = Child(name, module, arguments)
        self._children.append(child)
        return child


def _client_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
