"""`quire serve` and `quire generate` as a user meets them: real processes, the shipped model."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import grpc
import psutil
import pytest

from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

QUIRE = [sys.executable, "-m", "quire.cli.main"]
READY_WITHIN_S = 60


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [
            *QUIRE,
            "serve",
            "--grpc-port",
            "0",
            "--port",
            "0",
            "--max-num-seqs",
            "8",
            "--tokenizer-replicas",
            "2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.match(r"Quire is ready: quire-shakespeare on grpc (127\.0\.0\.1:\d+) ", line)
    assert match, line
    yield process, match[1]
    process.send_signal(signal.SIGINT)
    process.wait(60)
    process.stdout.close()


def _generate(address: str, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [*QUIRE, "generate", "ROMEO:\n", "--address", address, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_prompt_comes_back_as_text_and_the_seed_fixes_it(served: tuple[subprocess.Popen[str], str]) -> None:
    first = _generate(served[1], "--seed", "1", "--max-tokens", "40")
    again = _generate(served[1], "--seed", "1", "--max-tokens", "40")
    other = _generate(served[1], "--seed", "2", "--max-tokens", "40")
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.split()) > 5
    assert first.stdout == again.stdout != other.stdout


def test_a_bad_parameter_is_refused_by_name(served: tuple[subprocess.Popen[str], str]) -> None:
    refused = _generate(served[1], "--temperature", "-1")
    assert refused.returncode == 1
    assert "temperature=-1.0: must be at least 0" in refused.stderr


def test_the_scheduler_and_tokenizer_processes_load_no_torch(
    served: tuple[subprocess.Popen[str], str],
) -> None:
    children = psutil.Process(served[0].pid).children()
    maps = {child.cmdline()[2]: {m.path for m in child.memory_maps()} for child in children}
    assert sorted(maps) == ["quire_scheduler", "quire_tokenizer", "quire_worker"]
    assert len(children) == 4
    for module in ("quire_scheduler", "quire_tokenizer"):
        assert not [path for path in maps[module] if "torch" in path]
    assert [path for path in maps["quire_worker"] if "torch" in path]


def test_processes_are_started_before_the_launcher_imports_what_speaks_to_them() -> None:
    program = "import sys, quire.cli.serve; print('grpc' in sys.modules)"
    imported = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert imported.stdout == "False\n"


def test_a_killed_worker_is_replaced(served: tuple[subprocess.Popen[str], str]) -> None:
    def worker() -> psutil.Process | None:
        children = psutil.Process(served[0].pid).children()
        return next((c for c in children if c.cmdline()[2:3] == ["quire_worker"]), None)

    before = worker()
    assert before is not None
    os.kill(before.pid, signal.SIGKILL)
    after_kill = _generate(served[1], "--seed", "1", "--max-tokens", "20")
    assert after_kill.returncode == 0, after_kill.stderr
    replaced = worker()
    assert replaced is not None
    assert replaced.pid != before.pid


def test_replicas_share_the_port_and_one_that_was_killed_joins_again_without_a_failed_call(
    served: tuple[subprocess.Popen[str], str],
) -> None:
    launcher, address = served
    port = int(address.rpartition(":")[2])

    def replicas() -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for child in psutil.Process(launcher.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                found += [child] if "quire_tokenizer" in child.cmdline() else []
        return found

    def num_connections(replica: psutil.Process) -> int:
        connections = replica.net_connections(kind="tcp")
        return sum(c.status == psutil.CONN_ESTABLISHED and c.laddr[1] == port for c in connections)

    with contextlib.ExitStack() as stack:
        before = [num_connections(replica) for replica in replicas()]
        for _ in range(24):
            _generate_on(stack.enter_context(_channel(address)))
        after = [num_connections(replica) for replica in replicas()]
        assert sum(after) - sum(before) == 24
        assert all(now > then for now, then in zip(after, before, strict=True))

    killed, survivor = replicas()
    os.kill(killed.pid, signal.SIGKILL)
    deadline = time.monotonic() + READY_WITHIN_S
    while not (others := [r for r in replicas() if r.pid not in (killed.pid, survivor.pid)]):
        assert time.monotonic() < deadline, "the replica was not started again"
        time.sleep(0.05)
    with contextlib.ExitStack() as stack:
        while not num_connections(others[0]):
            assert time.monotonic() < deadline, "no connection reached the new replica"
            _generate_on(stack.enter_context(_channel(address)))


def _channel(address: str) -> grpc.Channel:
    """A connection of its own."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def _generate_on(channel: grpc.Channel) -> None:
    params = sampling_pb2.SamplingParams(max_tokens=3, ignore_eos=True)
    request = generation_pb2.GenerateRequest(text="ROMEO:", sampling_params=params)
    responses = generation_pb2_grpc.GenerationServiceStub(channel).Generate(request, timeout=30)
    assert sum(len(output.token_ids) for response in responses for output in response.outputs) == 3


def test_a_busy_port_names_the_port_and_its_holder() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        command = [*QUIRE, "serve", "--grpc-port", str(port)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"--grpc-port {port}" in refused.stderr
    assert f"process {os.getpid()}" in refused.stderr


def test_one_port_for_both_protocols_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*QUIRE, "serve", "--grpc-port", port, "--port", port]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 1
    assert f"--port {port}: --grpc-port is the same" in refused.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensor-parallel-size", "2"],
        ["--quantization", "awq"],
        ["--speculative-model", "x"],
        ["--enable-lora"],
        ["--swap-space", "4"],
    ],
)
def test_a_flag_of_a_feature_that_is_not_built_is_refused(flags: list[str]) -> None:
    refused = subprocess.run(
        [*QUIRE, "serve", *flags], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert flags[0] in refused.stderr
    assert "not built yet" in refused.stderr


def test_ctrl_c_leaves_no_process_behind() -> None:
    process = subprocess.Popen(
        [*QUIRE, "serve", "--grpc-port", "0", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Quire is ready")
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    deadline = time.monotonic() + READY_WITHIN_S
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, "a child outlived its launcher"
        time.sleep(0.05)
    process.stdout.close()
