"""One part of the suite: cases that share a place and a model, run in a process of their own.

A process per part keeps device memory apart: what one part allocated is gone when the next one begins.
"""

import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.gpu import model as models
from benchmarks.gpu.case import CASES, Place
from benchmarks.gpu.floor import Floor, Rates
from benchmarks.gpu.result import Row
from benchmarks.gpu.workload import STREAMS, Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says of every case."""

    seed: int
    repeats: int
    tiny: bool
    num_tokenizers: int
    num_clients: int
    streams: tuple[int, ...] = STREAMS
    """The closed loops of B and C."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """The device that is measured."""

    name: str
    rates: Rates


class PartFailed(Exception):
    """A part's process ended without handing in its rows."""


def probe() -> Device:
    """Measures the device, in a process of its own."""
    (device,) = _in_process(_send_device)
    return device


def run_parts(names: list[str], device: Device, options: Options) -> Iterator[tuple[str, list[Row] | None]]:
    """Each case and its rows, in order; None for a case that failed, whose error was printed."""
    for _, group in groupby(names, key=lambda name: (CASES[name].place, CASES[name].model.name)):
        part = list(group)
        try:
            yield from zip(part, _in_process(_send_rows, part, device, options), strict=True)
        except PartFailed as error:
            print(f"{', '.join(part)}: {error}", flush=True)
            yield from ((name, None) for name in part)


def _in_process(target: Callable[..., None], *arguments: Any) -> list[Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(sender, *arguments))
    process.start()
    sender.close()
    answers: list[Any] = []
    while True:
        try:
            answers.append(receiver.recv())
        except EOFError:
            break
    process.join()
    if process.exitcode:
        raise PartFailed(f"its process ended with status {process.exitcode}")
    return answers


def _send_device(sender: Connection) -> None:
    from benchmarks.gpu.probe import device_name, measure_rates

    sender.send(Device(name=device_name(), rates=measure_rates()))


def _send_rows(sender: Connection, names: list[str], device: Device, options: Options) -> None:
    model = CASES[names[0]].model
    if options.tiny:
        model = models.tiny(model)
    floor = Floor(device.rates, model.config)
    size = Size(vocab_size=model.vocab_size, tiny=options.tiny)
    with _opened(CASES[names[0]].place, model, floor, size, options) as cases:
        for name in names:
            sender.send(_measured(name, cases, options.seed))


def _measured(name: str, cases: Any, seed: int) -> list[Row] | None:
    start = time.perf_counter()
    try:
        rows = getattr(cases, CASES[name].measure)(CASES[name].title)
    except Exception:  # noqa: BLE001 — one case that fails must not cost the others of its part
        traceback.print_exc()
        return None
    print(f"{name}: done in {time.perf_counter() - start:.0f} s", flush=True)
    return rows if seed == 1 else [replace(row, load=f"{row.load}, seed {seed}") for row in rows]


@contextmanager
def _opened(place: Place, model: models.Model, floor: Floor, size: Size, options: Options) -> Iterator[Any]:
    """The cases of a place, with what they need up and running; imported here, so that clients stay small."""
    match place:
        case Place.WORKER:
            from benchmarks.gpu.worker_alone import WorkerAlone
            from benchmarks.gpu.worker_case import WorkerCases

            worker = WorkerAlone(model)
            print(f"{model.name}: loaded in {worker.load_s:.1f} s", flush=True)
            yield WorkerCases(worker, floor, size, options.seed, options.repeats, options.streams)
        case Place.STACK:
            from benchmarks.gpu.stack import Stack
            from benchmarks.gpu.stack_case import StackCases

            stack = Stack(model, options.num_tokenizers)
            cases = StackCases(
                stack, floor, size, options.seed, options.repeats, options.num_clients, options.streams
            )
            with closing(cases):
                yield cases
        case Place.START:
            from benchmarks.gpu.start_case import StartCases

            yield StartCases(model)
        case Place.PEER:
            from benchmarks.gpu.peer_case import PeerCases

            yield PeerCases(model, floor, size, options.seed)
