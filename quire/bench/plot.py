"""Figures as a picture: throughput over the rate, and how TTFT and ITL are distributed. Needs matplotlib."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from quire.bench.load import Run
from quire.bench.result import values_s
from quire.errors import ConfigError


def check_plot_is_possible() -> None:
    """Raises `ConfigError` without matplotlib: before a run, not after it."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot: needs matplotlib; install quire[bench]", field="plot")


def write_plot(file: Path, runs: Sequence[Run], title: str) -> None:
    """Writes a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    rates, ttft, itl = figure.subplots(1, 3)
    _draw_throughput(rates, runs)
    for axes, metric in ((ttft, "ttft"), (itl, "itl")):
        for run in runs:
            good = [trace for trace in run.traces if not trace.error]
            values_ms = sorted(1000 * value for value in values_s(good, metric))
            shares = [(number + 1) / len(values_ms) for number in range(len(values_ms))]
            axes.plot(values_ms, shares, drawstyle="steps-post", label=f"{run.request_rate:g} req/s")
        axes.set(xlabel=f"{metric.upper()} (ms)", ylabel="share of all", ylim=(0, 1), xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, format="png", dpi=120)


def _draw_throughput(axes: Any, runs: Sequence[Run]) -> None:
    names = [f"{run.request_rate:g}" for run in runs]
    rates = [
        sum(trace.num_output_tokens for trace in run.traces if not trace.error) / run.duration_s
        for run in runs
    ]
    axes.bar(names, rates, width=0.6)
    axes.set(xlabel="request rate (1/s)", ylabel="output tokens/s")
