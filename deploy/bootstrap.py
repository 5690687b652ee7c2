"""Sets up `.venv` for a clone: checks what is missing, says what it will install, then installs it, once.

    python3 deploy/bootstrap.py all      to run          python3 deploy/bootstrap.py test     to run the tests

Standard library only, because nothing is installed yet. A second call with nothing changed returns at once.
"""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LITELLM_VENV = ROOT / ".venv-litellm"
LITELLM_PINS = "tests/clients/litellm.txt"
SUPPORTED = ((3, 11), (3, 12))
EXTRAS = {
    "all": "the three services (about 1 GB on disk with a CPU build of torch, several with a CUDA build)",
    "test": "the three services, transformers and the test tools (about 1.5 GB on disk with a CPU build of torch)",
    "check": "the services, the test tools and the linters (about 2 GB on disk with a CPU build of torch)",
    "clients": "the test tools and clients of other projects (LiteLLM's proxy is 0.8 GB more, in .venv-litellm)",
}

_SHOWN_WORDS = ("Collecting", "Downloading", "Installing")
_LINE_LEN = 120


def missing_parts(
    version: tuple[int, int],
    has_module: Callable[[str], bool],
    has_program: Callable[[str], bool],
    has_gpu: bool,
) -> list[str]:
    """What this machine lacks, as sentences that say what to do; empty when nothing is."""
    missing: list[str] = []
    if version not in SUPPORTED:
        wanted = " or ".join(f"{major}.{minor}" for major, minor in SUPPORTED)
        missing.append(
            f"Python {wanted} is needed, this is {version[0]}.{version[1]}; set PYTHON to one of them"
        )
    for module in ("venv", "ensurepip"):
        if not has_module(module):
            missing.append(
                f"the Python module {module} is missing; on Debian and Ubuntu it is in python3-venv"
            )
    if has_gpu and not any(map(has_program, ("cc", "gcc", "clang"))):
        missing.append(
            "a C compiler is missing, which Triton needs on a GPU; on Debian and Ubuntu it is in gcc"
        )
    return missing


def stamp_of(extra: str) -> str:
    """Changes when what has to be installed changes."""
    digest = hashlib.sha256(extra.encode())
    for name in ("pyproject.toml", "constraints.txt", *([LITELLM_PINS] if extra == "clients" else [])):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def main() -> None:
    """Sets up, or says what is missing."""
    extra = sys.argv[1] if len(sys.argv) > 1 else "all"
    if extra not in EXTRAS:
        sys.exit(f"bootstrap: {extra!r} is none of {', '.join(EXTRAS)}")
    stamp_file = VENV / f".quire-{extra}"
    if stamp_file.is_file() and stamp_file.read_text() == stamp_of(extra):
        return
    has_gpu = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
    missing = missing_parts(
        (sys.version_info.major, sys.version_info.minor),
        lambda module: importlib.util.find_spec(module) is not None,
        lambda program: shutil.which(program) is not None,
        has_gpu,
    )
    if missing:
        sys.exit("bootstrap: cannot set up:\n" + "\n".join(f"  * {part}" for part in missing))
    _install(extra)
    if extra == "clients":
        _install_litellm()
    stamp_file.write_text(stamp_of(extra))


def shown(line: str) -> str | None:
    """What to show of a line of pip's: packages as they are found and fetched, with their sizes; None of the rest."""
    words = line.split()
    return " ".join(words)[:_LINE_LEN] if words and words[0] in _SHOWN_WORDS else None


def _install(extra: str) -> None:
    if not (VENV / "bin" / "python").exists():
        print(f"Making {VENV}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    # torch goes first and alone: where pip finds a CPU build of the pinned version it is taken, and nothing that is
    # installed later asks for a CUDA build any more.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    torch_pin = next(line for line in lines if line.startswith("torch=="))
    needs_torch = not _has_torch()
    print(f"Setting up {VENV}, once: {EXTRAS[extra]}.", flush=True)
    if needs_torch:
        print(
            f"  torch comes as {_torch_build(torch_pin)}; PIP_FIND_LINKS can name a folder with another build"
        )
        _pip("install", torch_pin, "-c", "constraints.txt")
    _pip("install", "-c", "constraints.txt", "-e", f".[{extra}]")
    print("Set up.", flush=True)


def _install_litellm() -> None:
    """LiteLLM's proxy demands other versions than ours of what both need."""
    if not (LITELLM_VENV / "bin" / "python").exists():
        print(f"Making {LITELLM_VENV}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(LITELLM_VENV)], check=True)
    python = str(LITELLM_VENV / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", LITELLM_PINS], cwd=ROOT, check=True)


def _has_torch() -> bool:
    probe = subprocess.run([VENV / "bin" / "python", "-c", "import torch"], capture_output=True)
    return probe.returncode == 0


def _torch_build(torch_pin: str) -> str:
    """The file that pip would take, so that a CUDA build of gigabytes comes as no surprise."""
    dry_run = ("install", "--dry-run", "--no-deps", "--quiet", "--report", "-", torch_pin)
    report = subprocess.run(_pip_command(*dry_run), cwd=ROOT, capture_output=True, text=True)
    if report.returncode:
        return torch_pin
    return (
        json.loads(report.stdout)["install"][0]["download_info"]["url"].rpartition("/")[2].replace("%2B", "+")
    )


def _pip(*arguments: str) -> None:
    command = _pip_command(*arguments)
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "stdout is a pipe"
        for line in process.stdout:
            if (progress := shown(line)) is not None:
                print(f"  {progress}", flush=True)
    if process.returncode:
        sys.exit(f"bootstrap: pip failed; repeat it by hand to see more: {' '.join(command)}")


def _pip_command(*arguments: str) -> list[str]:
    return [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments]


if __name__ == "__main__":
    main()
