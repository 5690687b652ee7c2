"""Fails when the committed code in quire/v1 is not what the contracts in protos/ generate."""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Generates into a scratch folder and compares."""
    protos = sorted(str(path) for path in (ROOT / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [f"--{kind}_out={scratch}" for kind in ("python", "pyi", "grpc_python")]
        includes = ["-I", str(ROOT / "protos"), "-I", str(Path(protoc.__file__).parent / "_proto")]
        if protoc.main(["protoc", *includes, *outputs, *protos]):
            sys.exit("check_generated: protoc failed")
        generated = sorted(path for path in Path(scratch).rglob("*") if path.is_file())
        stale = [path for path in generated if not _same(path, ROOT / path.relative_to(scratch))]
        if stale:
            names = ", ".join(str(path.relative_to(scratch)) for path in stale)
            sys.exit(f"check_generated: {names} differ from their contracts; run `make protos`")


def _same(fresh: Path, committed: Path) -> bool:
    return committed.is_file() and fresh.read_bytes() == committed.read_bytes()


if __name__ == "__main__":
    main()
