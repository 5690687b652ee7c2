"""What is measured on the worker alone, case by case. Times come from `worker_alone`, floors from `floor`."""

from statistics import mean, median
from time import sleep

from benchmarks.gpu import workload
from benchmarks.gpu.floor import Floor
from benchmarks.gpu.result import STRUCTURED, Row
from benchmarks.gpu.worker_alone import WorkerAlone
from benchmarks.gpu.workload import Ask, Size

_NUM_SHORT_REPEATS = 15
"""Repetitions of what takes milliseconds."""
_NUM_DECODE_STEPS = 64
_NUM_WARM_UP_REQUESTS = 64
_REST_S = 0.1
"""Before each of two prompts whose times are compared: right after thousands of tokens the chip is at its power limit, and
whatever comes first then takes up to 0.6 ms longer (one H200)."""


class WorkerCases:
    """The cases of one loaded model."""

    def __init__(
        self,
        worker: WorkerAlone,
        floor: Floor,
        size: Size,
        seed: int,
        repeats: int,
        streams: tuple[int, ...] = workload.STREAMS,
    ) -> None:
        self._worker = worker
        self._floor = floor
        self._size = size
        self._seed = seed
        self._repeats = repeats
        self._streams = streams

    def uniform(self, name: str) -> list[Row]:
        """Workload A, and what of the KV cache it leaves unused."""
        asks = workload.uniform(self._size, self._seed)
        return [*self._waste(name, asks), self._throughput(name, asks, len(asks), "all at once")]

    def sampled(self, name: str) -> list[Row]:
        """Workload A with top-p, top-k and all three penalties."""
        asks = workload.uniform(self._size, self._seed, workload.SAMPLED)
        self._worker.run(asks, len(asks))
        return [self._throughput(name, asks, len(asks), "all at once")]

    def chat(self, name: str) -> list[Row]:
        """Workload B, and what of the KV cache it leaves unused."""
        return [*self._waste(name, workload.chat(self._size, self._seed)), *self._closed_loops(name)]

    def chat_warmed(self, name: str) -> list[Row]:
        """Workload C."""
        warm_up = workload.chat(self._size, self._seed)[:_NUM_WARM_UP_REQUESTS]
        self._worker.run(warm_up, len(warm_up))
        return self._closed_loops(name)

    def structured(self, name: str) -> list[Row]:
        """Workload S, as free text and under its schema, in turns."""
        asks = {
            name + kind: workload.structured(self._size, self._seed, free=not kind)
            for kind in ("", STRUCTURED)
        }
        num_streams = self._size.count(workload.NUM_STRUCTURED_STREAMS)
        for each in asks.values():
            self._worker.run(each, num_streams)
        load = f"{num_streams} streams"
        rows = [
            self._throughput(case, each, num_streams, load, repeats=1)
            for _ in range(self._repeats)
            for case, each in asks.items()
        ]
        return [_middle(rows, case) for case in asks]

    def single(self, name: str) -> list[Row]:
        """Workload D."""
        (ask,) = workload.single(self._size, self._seed)
        self._worker.first_token_and_gap_s(ask)
        times = [self._worker.first_token_and_gap_s(ask) for _ in range(2 * self._repeats + 1)]
        prompt_len = len(ask.prompt_token_ids)
        return [
            _ms(f"{name}, time per token", "1 request", median(gap for _, gap in times),
                self._floor.decode_s(1, prompt_len + ask.num_out // 2)),
            _ms(f"{name}, time to first token", "1 request", median(first for first, _ in times),
                self._floor.first_token_s(prompt_len)),
        ]  # fmt: skip

    def prefill(self, name: str) -> list[Row]:
        """Workload E."""
        asks = workload.prefill(self._size, self._seed)
        num_tokens = sum(len(ask.prompt_token_ids) for ask in asks)
        self._worker.run(asks, len(asks))
        seconds = median(self._worker.run(asks, len(asks)).seconds for _ in range(2 * self._repeats + 1))
        return [
            Row(
                case=name,
                load=f"{len(asks)} prompts at once",
                value=num_tokens / seconds,
                unit="prompt tok/s",
                floor=num_tokens / self._floor.prefill_s(num_tokens),
            )
        ]

    def long_context(self, name: str) -> list[Row]:
        """Decode steps at 1 × 32k and 16 × 8k tokens of context."""
        rows: list[Row] = []
        for batch, context in ((1, 32_000), (16, 8_000)):
            asks = workload.long_context(self._size, self._seed, batch, context, _NUM_DECODE_STEPS)
            seconds = median(self._worker.decode_step_s(asks) for _ in range(self._repeats))
            context = self._size.length(context)
            rows.append(
                _ms(f"{name}, time per step", f"{batch} x {context} tokens", seconds,
                    self._floor.decode_s(batch, batch * context))
            )  # fmt: skip
        return rows

    def cached_prompt(self, name: str) -> list[Row]:
        """A prompt whose first 15/16 are cached against a lone prompt of the rest's length, each after a rest."""
        long_s: list[float] = []
        short_s: list[float] = []
        for repeat in range(_NUM_SHORT_REPEATS):
            prefix, tail, lone = workload.shared_prefix(self._size, self._seed + repeat)
            engine = self._worker.fresh_engine()
            self._worker.first_token_s(engine, prefix + lone[:1])
            sleep(_REST_S)
            seconds, num_cached = self._worker.first_token_s(engine, prefix + tail)
            assert num_cached == len(prefix), f"{num_cached} of {len(prefix)} tokens were cached"
            long_s.append(seconds)
            sleep(_REST_S)
            seconds, num_cached = self._worker.first_token_s(engine, lone)
            assert num_cached == 0, f"{num_cached} tokens of a new prompt were cached"
            short_s.append(seconds)
        num_cached, num_new = self._size.length(3840), self._size.length(256)
        loads = f"{num_cached + num_new} tokens, {num_cached} cached", f"{num_new} tokens"
        return [
            _ms(f"{name}, time to first token", loads[0], median(long_s),
                self._floor.first_token_s(num_new, num_cached)),
            _ms(f"{name}, time to first token", loads[1], median(short_s), self._floor.first_token_s(num_new)),
            Row(case=f"{name}, ratio", load=loads[0], value=median(long_s) / median(short_s), unit="x"),
        ]  # fmt: skip

    def _closed_loops(self, name: str) -> list[Row]:
        return [
            self._throughput(name, asks, num_streams, load, repeats=1 if num_streams == 1 else None)
            for num_streams, load, asks in workload.closed_loops(self._size, self._seed, self._streams)
        ]

    def _throughput(
        self, name: str, asks: list[Ask], num_streams: int, load: str, repeats: int | None = None
    ) -> Row:
        runs = [self._worker.run(asks, num_streams) for _ in range(repeats or self._repeats)]
        for run in runs:
            print(
                f"  {name}, {load}: {run.tokens_per_s:,.0f} tok/s, {run.num_steps} steps of "
                f"{1000 * run.seconds / run.num_steps:.2f} ms, {run.num_preemptions} preemptions",
                flush=True,
            )
        return Row(
            case=name,
            load=load,
            value=median(run.tokens_per_s for run in runs),
            unit="tok/s",
            floor=workload.num_tokens_out(asks) / self._floor.workload_s(asks, num_streams),
        )

    def _waste(self, name: str, asks: list[Ask]) -> list[Row]:
        """Measured in a repetition of its own, which also warms up what follows."""
        ratios = self._worker.kv_waste(asks) or [0.0]
        return [
            Row(case=f"{name}, KV waste, mean", load="all at once", value=100 * mean(ratios), unit="%"),
            Row(case=f"{name}, KV waste, largest", load="all at once", value=100 * max(ratios), unit="%"),
        ]


def _middle(rows: list[Row], case: str) -> Row:
    """The row of the median value."""
    of_case = sorted((row for row in rows if row.case == case), key=lambda row: row.value)
    return of_case[len(of_case) // 2]


def _ms(case: str, load: str, seconds: float, floor_s: float) -> Row:
    return Row(case=case, load=load, value=1000 * seconds, unit="ms", floor=1000 * floor_s)
