"""Figures as a table in the terminal: one column per request rate. Knows no run."""

from collections.abc import Sequence
from typing import Any, TextIO

_COUNTS = (
    ("completed", "requests completed"),
    ("failed", "requests failed"),
    ("duration", "duration (s)"),
    ("total_input_tokens", "input tokens"),
    ("total_output_tokens", "output tokens"),
    ("request_throughput", "requests/s"),
    ("output_throughput", "output tokens/s"),
    ("total_token_throughput", "all tokens/s"),
    ("max_concurrent_requests", "most at once"),
)


def show_table(runs: Sequence[dict[str, Any]], title: str, out: TextIO) -> None:
    """Writes the table; with `rich`, where it is installed."""
    rows = list(_rows(runs))
    head = ["", *(f"{run['request_rate']} req/s" for run in runs)]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
        out.write(f"{title}\n")
        for row in (head, *rows):
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            out.write("  ".join(cells) + "\n")
        return
    table = Table(title=title)
    table.add_column()
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    Console(file=out).print(table)


def _rows(runs: Sequence[dict[str, Any]]) -> Any:
    for name, label in _COUNTS:
        yield [label, *(_figure(run[name]) for run in runs)]
    for name in runs[0]:
        if name.endswith("_ms") and not name.startswith("std_"):
            statistic, metric, _ = name.split("_")
            yield [f"{metric.upper()} {statistic} (ms)", *(_figure(run[name]) for run in runs)]


def _figure(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
