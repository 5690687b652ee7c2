"""What the processes of a stack hold in memory, what they refuse to start with, and how they end."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import psutil
import pytest

from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2
from tests.ship.served import QUIRE, Served, running_stack

_RSS_LIMITS_MB = {"quire_scheduler": 150, "quire_tokenizer": 350}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "8") as running:
        yield running


def _request(max_tokens: int) -> generation_pb2.GenerateRequest:
    params = sampling_pb2.SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return generation_pb2.GenerateRequest(text="Enter two citizens:\n", sampling_params=params)


def test_scheduler_and_tokenizer_stay_small_after_serving(served: Served) -> None:
    with grpc.insecure_channel(served.address) as channel, ThreadPoolExecutor(8) as pool:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for responses in pool.map(lambda _: list(stub.Generate(_request(48))), range(16)):
            assert responses[-1].usage.completion_tokens == 48
    children = {child.cmdline()[2]: child for child in psutil.Process(served.process.pid).children()}
    for module, limit_mb in _RSS_LIMITS_MB.items():
        rss_mb = children[module].memory_info().rss / 1e6
        print(f"{module} holds {rss_mb:.0f} MB")
        assert rss_mb < limit_mb
        assert not [each.path for each in children[module].memory_maps() if "torch" in each.path]


def test_a_cache_that_does_not_fit_is_refused_with_the_figure_that_does() -> None:
    command = [*QUIRE, "serve", "--grpc-port", "0", "--port", "0", "--num-gpu-blocks-override", "100000000"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert "--num-gpu-blocks-override=100000000" in refused.stderr
    figure = refused.stderr.partition("at most ")[2].partition(" blocks")[0]
    assert 0 < int(figure) < 100_000_000
    assert "the worker process ended with status 1 before it was ready" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle_of_streams_ends_every_process_with_status_0(number: signal.Signals) -> None:
    with ExitStack() as opened:
        running = opened.enter_context(running_stack("--max-num-seqs", "4"))
        channel = opened.enter_context(grpc.insecure_channel(running.address))
        calls = [generation_pb2_grpc.GenerationServiceStub(channel).Generate(_request(200)) for _ in range(4)]
        for call in calls:
            next(call)
        children = psutil.Process(running.process.pid).children(recursive=True)
        running.process.send_signal(number)
        # What runs is finished, not cut off.
        for call in calls:
            last = list(call)[-1]
            assert last.usage.completion_tokens == 200
        assert running.process.wait(60) == 0
        gone, alive = psutil.wait_procs(children, timeout=10)
        assert (len(gone), alive) == (3, [])


def test_a_launcher_that_is_killed_takes_its_processes_along() -> None:
    command = [*QUIRE, "serve", "--grpc-port", "0", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Quire is ready")
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    gone, alive = psutil.wait_procs(children, timeout=20)
    assert (len(gone), alive) == (3, [])


@pytest.mark.parametrize(
    ("module", "flag"),
    [
        ("quire_scheduler", "--grpc-port"),
        ("quire_scheduler", "--data-port"),
        ("quire_tokenizer", "--grpc-port"),
        ("quire_tokenizer", "--port"),
        ("quire_worker", "--grpc-port"),
    ],
)
def test_a_service_on_a_busy_port_names_it_and_its_holder(module: str, flag: str) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = [sys.executable, "-m", module, "--grpc-port", "0", flag, str(port)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr
    assert f"process {psutil.Process().pid}" in refused.stderr
    assert "Traceback" not in refused.stderr
