"""An empty virtual environment that holds the built wheel and what one of its extras asks for, and nothing else.

What the extra asks for is linked from the environment that runs the tests: the same files, nothing to download.
"""

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from email.parser import Parser
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment."""

    directory: Path

    @property
    def python(self) -> str:
        """Its interpreter."""
        return str(self.directory / "bin" / "python")

    @property
    def variables(self) -> dict[str, str]:
        """The variables of a shell that knows nothing of the checkout."""
        return {
            key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))
        }


def build_wheel(directory: Path) -> Path:
    """The wheel of this checkout."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(directory)]
    subprocess.run(command, cwd=_ROOT, check=True, capture_output=True)
    (wheel,) = directory.glob("quire-*.whl")
    return wheel


def make_environment(directory: Path, wheel: Path, extra: str) -> Environment:
    """An environment for `quire[extra]`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(directory)], check=True)
    environment = Environment(directory)
    (site_packages,) = directory.glob("lib/python*/site-packages")
    for each in _closure(_requirements_of_wheel(wheel, extra)):
        _link(each, site_packages)
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", environment.python, *install], check=True)
    return environment


def _requirements_of_wheel(wheel: Path, extra: str) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
        lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist", [])
    requirements = [Requirement(line) for line in lines]
    own = [each for each in _active(requirements, {extra}) if _normal(each.name) == "quire"]
    return _active(requirements, {extra}.union(*(each.extras for each in own)))


def _closure(wanted: list[Requirement]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        key = (_normal(requirement.name), frozenset(requirement.extras))
        if key in seen or key[0] == "quire":
            continue
        seen.add(key)
        try:
            found[key[0]] = distribution(requirement.name)
        except PackageNotFoundError:
            raise AssertionError(f"{requirement} is not installed beside the tests") from None
        assert requirement.specifier.contains(found[key[0]].version, prereleases=True), requirement
        wanted += _active(
            [Requirement(line) for line in found[key[0]].requires or []], set(requirement.extras)
        )
    return list(found.values())


def _active(requirements: list[Requirement], extras: set[str]) -> list[Requirement]:
    return [
        each
        for each in requirements
        if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


def _link(each: Distribution, site_packages: Path) -> None:
    for top in {file.parts[0] for file in each.files or [] if file.parts[0] not in ("..", "__pycache__")}:
        target = site_packages / top
        if not target.exists():
            target.symlink_to(Path(str(each.locate_file(top))).resolve())


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
