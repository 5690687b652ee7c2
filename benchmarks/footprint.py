"""How soon the whole stack can serve the shipped model, and how much memory each of its processes then holds.

    python benchmarks/footprint.py [--requests 32]

Prints figures beside their bars; asserts nothing. Ready is when `quire serve` prints its ready line, timed from the start
of its process. Memory is resident memory after a few requests were served.
"""

import argparse
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import psutil

from quire.v1 import generation_pb2, generation_pb2_grpc, sampling_pb2

_READY_BAR_S = 10
_RSS_BARS_MB = {"quire_scheduler": 150, "quire_tokenizer": 350}


def main() -> None:
    """Starts a stack, measures it and stops it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=32, help="Requests served before memory is read.")
    options = parser.parse_args()
    started = time.monotonic()
    command = [sys.executable, "-m", "quire.cli.main", "serve", "--grpc-port", "0", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("Quire is ready"):
            sys.exit(f"footprint: no ready line but {line!r}")
        print(f"ready          {time.monotonic() - started:7.1f} s   (bar {_READY_BAR_S} s)")
        _generate(line.split(" on grpc ")[1].split()[0], options.requests)
        for child in psutil.Process(process.pid).children():
            _print_process(child)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _generate(address: str, num_requests: int) -> None:
    params = sampling_pb2.SamplingParams(max_tokens=64, ignore_eos=True)
    requests = [
        generation_pb2.GenerateRequest(text=f"Enter citizen {number}:\n", sampling_params=params)
        for number in range(num_requests)
    ]
    with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(8) as pool:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        for _ in pool.map(lambda request: list(stub.Generate(request)), requests):
            pass


def _print_process(child: psutil.Process) -> None:
    name = child.cmdline()[2]
    bar = f"bar {_RSS_BARS_MB[name]} MB, " if name in _RSS_BARS_MB else ""
    has_torch = any("libtorch" in mapping.path for mapping in child.memory_maps())
    rss_mb = child.memory_info().rss / 1e6
    print(f"{name:<15}{rss_mb:7.0f} MB  ({bar}torch is {'' if has_torch else 'not '}mapped)")


if __name__ == "__main__":
    main()
