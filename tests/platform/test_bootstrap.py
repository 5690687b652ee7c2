"""What set-up says is missing, as pure decisions."""

import importlib.util
from pathlib import Path

SPEC = importlib.util.spec_from_file_location(
    "bootstrap", Path(__file__).parents[2] / "deploy" / "bootstrap.py"
)
assert SPEC is not None and SPEC.loader is not None
bootstrap = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(bootstrap)


def _missing(version=(3, 11), modules=("venv", "ensurepip"), programs=("gcc",), has_gpu=False) -> str:
    parts = bootstrap.missing_parts(version, lambda m: m in modules, lambda p: p in programs, has_gpu)
    return "; ".join(parts)


def test_nothing_is_missing_on_a_complete_machine() -> None:
    assert _missing() == ""
    assert _missing(version=(3, 12), has_gpu=True) == ""
    assert _missing(programs=(), has_gpu=False) == "", "without a GPU no compiler is needed"


def test_each_missing_part_is_named() -> None:
    assert "3.11 or 3.12" in _missing(version=(3, 10))
    assert "this is 3.13" in _missing(version=(3, 13))
    assert "ensurepip" in _missing(modules=("venv",))
    assert "python3-venv" in _missing(modules=())
    assert "C compiler" in _missing(programs=(), has_gpu=True)


def test_progress_names_what_is_fetched_and_leaves_out_the_rest() -> None:
    assert bootstrap.shown("  Downloading torch-2.13.0-cp312-none.whl (820.1 MB)\n") == (
        "Downloading torch-2.13.0-cp312-none.whl (820.1 MB)"
    )
    assert bootstrap.shown("Collecting grpcio>=1.85.1 (from quire==0.1.0)\n").startswith("Collecting grpcio")
    assert bootstrap.shown("Requirement already satisfied: wheel in /x\n") is None
    assert bootstrap.shown("\n") is None
    assert len(bootstrap.shown("Installing collected packages: " + "many, " * 100)) == 120


def test_the_stamp_changes_with_what_is_installed() -> None:
    assert bootstrap.stamp_of("all") == bootstrap.stamp_of("all") != bootstrap.stamp_of("test")
