"""Every scenario in `golden/` reads as it did when it was reviewed.

    QUIRE_REWRITE_GOLDEN=1 python -m pytest tests/core/test_golden_scenarios.py

writes what the core answers now into the files, to be reviewed like any other change.
"""

import os
from pathlib import Path

import pytest

from tests.core.scenario import replay

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda path: path.stem)
def test_scenario_reads_as_reviewed(path: Path) -> None:
    text = path.read_text()
    replayed = replay(text)
    if os.environ.get("QUIRE_REWRITE_GOLDEN"):
        path.write_text(replayed)
    else:
        assert replayed == text


def test_scenarios_cover_what_the_core_promises() -> None:
    assert len(list(GOLDEN.glob("*.txt"))) >= 12
