"""Where a served decode step spends its time: per kernel on the device, and on the host.

    python -m benchmarks.gpu.step_profile Qwen3-0.6B 256x600 1x256 1000x300

Each BATCHxCONTEXT decodes through the worker's served code path with two steps in flight. Prints the time per step, the
host's share of it that is not waiting, and the kernels of one step, longest first. `prefill:16x2048` profiles the computation
of that many prompts instead.
"""

import cProfile
import io
import pstats
import sys
import time
from statistics import median

import torch
from quire_scheduler.core import Sampling

from benchmarks.gpu.model import MODELS
from benchmarks.gpu.worker_alone import WorkerAlone
from tests.doubles.in_process_engine import InProcessEngine

_NUM_TIMED_STEPS = 40
_NUM_PROFILED_STEPS = 4
_NUM_KERNELS = 14
_NUM_FUNCTIONS = 25


def decoding_engine(worker: WorkerAlone, batch: int, context: int, vocab_size: int) -> InProcessEngine:
    """An engine in which every request decodes."""
    engine = worker.fresh_engine()
    for number in range(batch):
        prompt = [(7 * number + 13 * at) % vocab_size for at in range(context)]
        engine.add(prompt, Sampling(max_tokens=400, temperature=0.6, seed=number, min_tokens=400))
    while not all(output.token_ids for output in engine.outputs.values()):
        engine.step()
    for _ in range(3):
        engine.step()
    return engine


def step_ms(engine: InProcessEngine) -> tuple[float, float]:
    """Mean wall time of a step, and median of its part that does not wait for the device, in milliseconds."""
    hosts: list[float] = []
    first = time.perf_counter()
    for _ in range(_NUM_TIMED_STEPS):
        began = time.perf_counter()
        engine.fill_pipeline()
        filled = time.perf_counter()
        while not engine.oldest_is_ready:
            pass
        ready = time.perf_counter()
        engine.step()
        hosts.append(filled - began + time.perf_counter() - ready)
    return 1e3 * (time.perf_counter() - first) / _NUM_TIMED_STEPS, 1e3 * median(hosts)


def host_table(engine: InProcessEngine) -> str:
    """Host time per function of a few steps."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(_NUM_TIMED_STEPS):
        engine.step()
    profile.disable()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(_NUM_FUNCTIONS)
    return "\n".join(line for line in text.getvalue().splitlines()[6:] if line.strip())


def kernel_table(engine: InProcessEngine) -> str:
    """Device time per kernel and step."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(_NUM_PROFILED_STEPS):
            engine.step()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    total = sum(event.device_time_total for event in events) / 1e3 / _NUM_PROFILED_STEPS
    lines = [
        f"    {event.device_time_total / 1e3 / _NUM_PROFILED_STEPS:8.3f} ms "
        f"{event.count / _NUM_PROFILED_STEPS:6.1f} x  {event.key[:90]}"
        for event in events[:_NUM_KERNELS]
    ]
    return "\n".join([*lines, f"    {total:8.3f} ms in all kernels"])


def prefill_table(worker: WorkerAlone, batch: int, context: int, vocab_size: int) -> str:
    """Device time per kernel while prompts are computed, and the wall time of it all."""
    for profiled in (False, True):
        engine = worker.fresh_engine()
        for number in range(batch):
            prompt = [(7 * number + 13 * at) % vocab_size for at in range(context)]
            engine.add(prompt, Sampling(max_tokens=1, seed=number))
        torch.cuda.synchronize()
        began = time.perf_counter()
        if not profiled:
            engine.run()
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            engine.run()
            torch.cuda.synchronize()
        wall = time.perf_counter() - began
    events = sorted(profile.key_averages(), key=lambda event: -event.device_time_total)
    lines = [
        f"    {event.device_time_total / 1e3:8.3f} ms {event.count:6} x  {event.key[:90]}"
        for event in events[:_NUM_KERNELS]
    ]
    total = sum(event.device_time_total for event in events) / 1e3
    return "\n".join([*lines, f"    {total:8.3f} ms in all kernels, {1e3 * wall:.1f} ms of wall time"])


def main(name: str, cases: list[str]) -> None:
    """Profiles one model."""
    model = MODELS[name]
    worker = WorkerAlone(model)
    print(f"{name}: loaded in {worker.load_s:.1f} s", flush=True)
    for case in cases:
        batch, context = map(int, case.removeprefix("prefill:").split("x"))
        if case.startswith("prefill:"):
            print(f"{name} {case}:\n{prefill_table(worker, batch, context, model.vocab_size)}", flush=True)
            continue
        engine = decoding_engine(worker, batch, context, model.vocab_size)
        wall, host = step_ms(engine)
        print(f"{name} {case}: {wall:.3f} ms per step, {host:.3f} ms of it host work\n{kernel_table(engine)}")
        print(host_table(engine), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
