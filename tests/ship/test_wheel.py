"""The built wheel in an empty environment outside of the checkout: the whole stack, and each tier by its extra alone."""

import json
import signal
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.ship.environment import Environment, build_wheel, make_environment
from tests.ship.served import running_stack


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


def _run(environment: Environment, *command: str) -> str:
    finished = subprocess.run(
        command,
        cwd=environment.directory,
        env=environment.variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_serves_the_shipped_model(wheel: Path, tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "all", wheel, "all")
    where = _run(environment, environment.python, "-c", "import quire; print(quire.__path__[0])")
    assert Path(where.strip()).is_relative_to(environment.directory)
    quire = str(environment.directory / "bin" / "quire")
    with running_stack(
        command=[quire, "serve"], cwd=environment.directory, env=environment.variables
    ) as served:
        text = _run(
            environment, quire, "generate", "ROMEO:\n", "--address", served.address, "--max-tokens", "40"
        )
        assert len(text.split()) > 5
        _run(environment, quire, "health", served.address)


_FREE_PORTS = {"scheduler": [], "tokenizer": ["--port", "0"]}
"""Flags of the ports besides that of gRPC."""


@pytest.mark.parametrize("service", ["scheduler", "tokenizer"])
def test_a_tier_starts_with_its_extra_alone_and_without_torch(
    service: str, wheel: Path, tmp_path: Path
) -> None:
    environment = make_environment(tmp_path / service, wheel, service)
    find_torch = "import importlib.util as u; print([n for n in ('torch', 'transformers') if u.find_spec(n)])"
    assert _run(environment, environment.python, "-c", find_torch).strip() == "[]"
    process = subprocess.Popen(
        [environment.python, "-m", f"quire_{service}", "--grpc-port", "0", *_FREE_PORTS[service]],
        cwd=environment.directory,
        env=environment.variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        word, _, facts = process.stdout.readline().partition(" ")
        assert word == "READY"
        # A tokenizer lives without a scheduler; a scheduler takes workers before it has any.
        service_name = {"scheduler": "quire.v1.WorkerRegistryService", "tokenizer": ""}[service]
        quire = str(environment.directory / "bin" / "quire")
        _run(environment, quire, "health", json.loads(facts)["grpc"], "--service", service_name)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
        process.stdout.close()
    assert status == 0


def test_the_wheel_holds_the_model_and_no_test(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "quire/assets/shakespeare/model.safetensors" in names
    assert "quire/py.typed" in names
    roots = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert roots == {"quire", "quire_tokenizer", "quire_scheduler", "quire_worker", "quire_kernels"}
