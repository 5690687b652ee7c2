"""Rows of figures, the file that gathers them, and their table. Knows no case and no device.

A file is a list of rows, each `case`, `load`, `value`, `unit`, `floor` (null where nothing bounds the figure), and
`commit`, the commit that was measured. A row replaces an earlier one of the same case and load.
"""

import json
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gpu import ROOT

RESULTS = ROOT / "benchmarks" / "results"
FRONT_DOOR = " through the front door"
"""What the name of a case gains when it is measured through the whole stack."""

SHARE_OF_WORKER = ", share of the worker alone"
HTTP = " over HTTP"
"""What the name of a front-door case gains when its clients speak HTTP."""
SHARE_OF_GRPC = ", share of gRPC"
SAMPLED = ", top-p, top-k, penalties"
"""What the name of a case gains when its requests use every mask and penalty."""
SHARE_OF_PLAIN = ", share without them"

STRUCTURED = ", JSON schema"
"""What the name of a case gains when its requests ask for structured output."""
SHARE_OF_FREE_TEXT = ", share of free text"

_SHARES = {
    FRONT_DOOR: SHARE_OF_WORKER,
    HTTP: SHARE_OF_GRPC,
    SAMPLED: SHARE_OF_PLAIN,
    STRUCTURED: SHARE_OF_FREE_TEXT,
}
SHARES = tuple(_SHARES.values())
"""For each kind of variant, how the row that compares it with the plain case is named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure."""

    case: str
    load: str
    value: float
    unit: str
    floor: float | None = None
    """The best value that the hardware allows, in the same unit."""
    commit: str = ""

    @property
    def share(self) -> float | None:
        """How much of the floor is reached, 0 to 1: for a time the floor over the value, for a rate the reverse."""
        if not self.floor or not self.value:
            return None
        return self.value / self.floor if self.unit.endswith("/s") else self.floor / self.value


def read_rows(file: Path) -> list[Row]:
    """The rows of a file; none when it does not exist."""
    return [Row(**row) for row in json.loads(file.read_text())] if file.is_file() else []


def merge_rows(file: Path, new: list[Row]) -> list[Row]:
    """Enters rows into a file, with the shares that follow from them; returns what it holds."""
    rows = {(row.case, row.load): row for row in [*read_rows(file), *new]}
    for row in _shares(list(rows.values())):
        rows[row.case, row.load] = row
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows.values())
    file.write_text(f"[\n{lines}\n]\n")
    return list(rows.values())


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table; with the commit of each where they are of several."""
    columns = ["case", "load", "value", "unit", "floor", "share of floor"]
    several = len({row.commit for row in rows}) > 1
    if several:
        columns.append("commit")
    lines = [_line(columns), "|---|---|---:|---|---:|---:|" + several * "---|"]
    for row in rows:
        floor = _figure(row.floor) if row.floor is not None else ""
        share = f"{row.share:.0%}" if row.share is not None else ""
        cells = [row.case, row.load, _figure(row.value), row.unit, floor, share]
        lines.append(_line([*cells, row.commit] if several else cells))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def commit() -> str:
    """The commit of this tree, with a plus sign when files differ from it; `unknown` outside of a repository."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()


def _shares(rows: list[Row]) -> list[Row]:
    """For every throughput of a variant, its share of the plain case at the same load and commit."""
    plain = {(row.case, row.load, row.commit): row.value for row in rows if row.unit == "tok/s"}
    return [
        Row(case=row.case + name, load=row.load, value=100 * row.value / base, unit="%", commit=row.commit)
        for row in rows
        for variant, name in _SHARES.items()
        if row.unit == "tok/s" and row.case.endswith(variant)
        if (base := plain.get((row.case.removesuffix(variant), row.load, row.commit)))
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" if value < 10 else f"{value:.1f}"
