"""What is measured through the whole stack: streaming clients in other processes, closed loops and Poisson arrivals.

The scheduler is restarted before every repetition, so that each begins with an empty prefix cache. Token counts are
checked at the client and at the scheduler.
"""

import asyncio
import random
import resource
import time
from dataclasses import replace
from statistics import median

from benchmarks.gpu import workload
from benchmarks.gpu.client import Load, run_clients
from benchmarks.gpu.floor import Floor
from benchmarks.gpu.result import FRONT_DOOR, HTTP, STRUCTURED, Row
from benchmarks.gpu.stack import Stack
from benchmarks.gpu.trace import Summary
from benchmarks.gpu.workload import Ask, Size

_ARRIVALS_PER_S = 20.0
_NUM_WARM_UP_REQUESTS = 64


class StackCases:
    """The cases of one running stack."""

    def __init__(
        self,
        stack: Stack,
        floor: Floor,
        size: Size,
        seed: int,
        repeats: int,
        num_clients: int,
        streams: tuple[int, ...] = workload.STREAMS,
    ) -> None:
        self._stack = stack
        self._streams = streams
        self._num_clients = num_clients
        self._floor = floor
        self._size = size
        self._seed = seed
        self._repeats = repeats
        self._runner = asyncio.Runner()
        start = time.perf_counter()
        try:
            self._runner.run(stack.start())
        except BaseException:
            self.close()  # nobody else will: what has been started holds the GPU
            raise
        print(f"the stack is up in {time.perf_counter() - start:.1f} s", flush=True)

    def close(self) -> None:
        """Stops the stack."""
        self._runner.run(self._stack.stop())
        self._runner.close()

    def chat(self, title: str) -> list[Row]:
        """Workloads B and C as closed loops."""
        return self._closed_loops(title, self._streams)

    def chat_http(self, title: str) -> list[Row]:
        """The closed loops of several streams over `/v1/completions` with server-sent events."""
        several = tuple(num_streams for num_streams in self._streams if num_streams > 1)
        return self._closed_loops(title, several, over=HTTP, address=self._stack.http_address)

    def structured(self, title: str) -> list[Row]:
        """Workload S, as free text and under its schema."""
        num_streams = self._size.count(workload.NUM_STRUCTURED_STREAMS)
        rows: list[Row] = []
        for kind in ("", STRUCTURED):
            asks = workload.structured(self._size, self._seed, free=not kind)
            self._run(asks[:num_streams], Load(num_streams=num_streams), "warm-up")
            brought = self._closed_loop(title, asks, num_streams, f"{num_streams} streams")
            rows += [replace(row, case=row.case + kind) for row in brought]
        return rows

    def poisson(self, title: str) -> list[Row]:
        """The same requests, arriving at random at 20 a second."""
        asks = workload.chat(self._size, self._seed)
        draw = random.Random(self._seed)
        time_s = 0.0
        arrivals_s = [time_s := time_s + draw.expovariate(_ARRIVALS_PER_S) for _ in asks]
        self._run(asks[:_NUM_WARM_UP_REQUESTS], Load(num_streams=_NUM_WARM_UP_REQUESTS), "warm-up")
        name = f"Poisson {_ARRIVALS_PER_S:.0f} requests/s"
        summary = self._run(asks, Load(num_streams=len(asks), arrivals_s=arrivals_s), name)
        return _latency_rows(title + FRONT_DOOR, name, summary)

    def _closed_loops(
        self, title: str, streams: tuple[int, ...], *, over: str = "", address: str | None = None
    ) -> list[Row]:
        warm_up = workload.chat(self._size, self._seed)[:_NUM_WARM_UP_REQUESTS]
        self._run(warm_up, Load(num_streams=len(warm_up)), "warm-up", address)
        rows: list[Row] = []
        for num_streams, load, asks in workload.closed_loops(self._size, self._seed, streams):
            repeats = 1 if num_streams == 1 else None
            rows += self._closed_loop(
                title, asks, num_streams, load, repeats=repeats, over=over, address=address
            )
        return rows

    def _closed_loop(
        self,
        title: str,
        asks: list[Ask],
        num_streams: int,
        load: str,
        *,
        repeats: int | None = None,
        over: str = "",
        address: str | None = None,
    ) -> list[Row]:
        """Throughput, the median of all repetitions; latencies, of the repetition with that throughput."""
        case = title + FRONT_DOOR + over
        runs = [
            self._run(asks, Load(num_streams=num_streams), load + over, address)
            for _ in range(repeats or self._repeats)
        ]
        runs.sort(key=lambda run: run.tokens_per_s)
        middle = runs[len(runs) // 2]
        return [
            Row(
                case=case,
                load=load,
                value=median(run.tokens_per_s for run in runs),
                unit="tok/s",
                floor=workload.num_tokens_out(asks) / self._floor.workload_s(asks, num_streams),
            ),
            *_latency_rows(case, load, middle),
        ]

    def _run(self, asks: list[Ask], load: Load, name: str, address: str | None = None) -> Summary:
        self._runner.run(self._stack.restart_scheduler())
        before, start = self._cpu_seconds(), time.perf_counter()
        traces = run_clients(address or self._stack.address, asks, load, self._num_clients)
        after, seconds = self._cpu_seconds(), time.perf_counter() - start
        brought = [sum(trace.counts) for trace in traces]
        assert brought == [ask.num_out for ask in asks], "a request brought another number of tokens"
        summary = Summary(traces)
        stats = self._runner.run(self._stack.stats())
        # A sequence that was preempted finds its own blocks again; nobody else's prompt may.
        assert stats.num_preemptions or not stats.num_prefix_hit_tokens, "tokens came from the prefix cache"
        assert stats.num_generated_tokens >= summary.num_tokens, "fewer tokens were generated than received"
        assert summary.num_chars, "no text came"
        busy = {child: after[child] - before[child] for child in after}
        print(
            f"  {name}: {summary.tokens_per_s:,.0f} tok/s, {summary.num_messages:,} messages, {stats.num_steps} steps, "
            f"{stats.num_preemptions} preemptions, {stats.num_group_resets} resets; CPU seconds in {seconds:.1f} s "
            f"(start of the clients included): {', '.join(f'{child} {spent:.1f}' for child, spent in busy.items())}",
            flush=True,
        )
        return summary

    def _cpu_seconds(self) -> dict[str, float]:
        """By process; clients, which have ended, together."""
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        return self._stack.cpu_seconds() | {"clients": ended.ru_utime + ended.ru_stime}


def _latency_rows(case: str, load: str, summary: Summary) -> list[Row]:
    figures = {
        "TTFT p50": summary.ttft_s(50),
        "TTFT p99": summary.ttft_s(99),
        "ITL p50": summary.itl_s(50),
        "ITL p99": summary.itl_s(99),
    }
    rows = [
        Row(case=f"{case}, {name}", load=load, value=1000 * seconds, unit="ms")
        for name, seconds in figures.items()
    ]
    merged = Row(
        case=f"{case}, messages of more than one token", load=load, value=100 * summary.merged_share, unit="%"
    )
    return [*rows, merged]
