"""The processes of one stack, started in the order in which they need one another and stopped in reverse.

Knows no signal and no terminal.
"""

import argparse
import asyncio

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.launcher.child import Child
from quire.launcher.option import service_arguments


class Stack:
    """A scheduler, a worker and the tokenizer processes in front of them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._children: list[Child] = []
        self.address = ""
        """Where clients reach its gRPC services, host:port; set by `start`, as are the others."""
        self.http_url = ""
        """Where its HTTP API is; empty if it has none."""
        self.scheduler_address = ""
        self.worker_address = ""

    async def start(self) -> None:
        """Starts all processes. Raises `ConfigError` when one ends before it is ready; `stop` then ends the others."""
        options = self._options
        scheduler = self._child("scheduler", "quire_scheduler", service_arguments(options, SchedulerConfig))
        await scheduler.start()
        self.scheduler_address = scheduler.facts["grpc"]
        scheduler.pin("--grpc-port", self.scheduler_address.rpartition(":")[2])
        arguments = [*service_arguments(options, WorkerConfig), "--scheduler", self.scheduler_address]
        worker = self._child("worker", "quire_worker", arguments)
        first = self._tokenizer(0, options.grpc_port, options.port)
        await asyncio.gather(worker.start(), first.start())
        self.worker_address = worker.facts["grpc"]
        port = int(first.facts["grpc"].rpartition(":")[2])
        http_url = first.facts.get("http", "")
        http_port = int(http_url.rpartition(":")[2]) if http_url else 0
        first.pin("--grpc-port", str(port))
        first.pin("--port", str(http_port))
        replicas = [
            self._tokenizer(number, port, http_port) for number in range(1, options.tokenizer_replicas)
        ]
        await asyncio.gather(*(replica.start() for replica in replicas))
        self.address = f"{_client_host(options.host)}:{port}"
        self.http_url = http_url.replace(f"//{options.host}:", f"//{_client_host(options.host)}:")

    async def supervise(self) -> None:
        """Restarts whatever ends, until it is cancelled or the stack is stopped."""
        await asyncio.gather(*(child.supervise() for child in self._children))

    async def stop(self) -> None:
        """Ends all processes, also those of a start that failed or was cancelled."""
        # The front door closes first, then the workers, and the scheduler last: nobody is left waiting for an answer.
        for child in reversed(self._children):
            await child.stop()

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
    return "127.0.0.1" if host in ("0.0.0.0", "::") else host
