"""Prints a results file as a Markdown table: `python -m benchmarks.gpu.table [FILE] [--into DOCUMENT]`.

With `--into`, replaces what stands between the two marker comments of a document.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.gpu.result import RESULTS, read_rows, table

_BEGIN, _END = "<!-- table: begin -->", "<!-- table: end -->"


def main(argv: list[str]) -> int:
    """Renders."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.table", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "nvidia-h200.json")
    parser.add_argument(
        "--into", type=Path, help="document with the two markers, such as docs/performance.md"
    )
    arguments = parser.parse_args(argv)
    rows = read_rows(arguments.file)
    if not rows:
        sys.exit(f"{arguments.file} has no rows: run `python -m benchmarks.gpu` first")
    commits = ", ".join(sorted({row.commit for row in rows}))
    text = f"{arguments.file.stem}, commit {commits}\n\n{table(rows)}"
    if arguments.into is None:
        print(text)
    else:
        document = arguments.into.read_text()
        before, _, rest = document.partition(_BEGIN)
        _, marker, after = rest.partition(_END)
        if not marker:
            sys.exit(f"{arguments.into} lacks the markers {_BEGIN} and {_END}")
        arguments.into.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")
        print(f"{len(rows)} rows of {arguments.file} written into {arguments.into}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
