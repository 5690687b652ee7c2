"""The Dockerfiles and the compose file: clean, small, pinned, unprivileged, and wired as the services expect."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from quire.config import SchedulerConfig, TokenizerConfig, WorkerConfig
from quire.config.flag import parse

_ROOT = Path(__file__).parents[2]
_DEPLOY = _ROOT / "deploy"
_CONFIGS = {"scheduler": SchedulerConfig, "tokenizer": TokenizerConfig, "worker": WorkerConfig}
_HADOLINT = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
_COMPOSE = shutil.which("docker-compose")


def _instructions(service: str) -> list[tuple[str, str]]:
    """The instructions of the service's Dockerfile and their arguments, continued lines joined."""
    text = (_DEPLOY / f"{service}.Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def _exec_form(service: str, instruction: str) -> list[str]:
    arguments = [rest for word, rest in _instructions(service) if word == instruction]
    return yaml.safe_load(arguments[-1][arguments[-1].index("[") :])


def _compose() -> dict:
    return yaml.safe_load((_DEPLOY / "compose.yaml").read_text())


@pytest.mark.skipif(_HADOLINT is None, reason="hadolint is not installed; `make check` installs it")
@pytest.mark.parametrize("service", _CONFIGS)
def test_the_dockerfile_lints_clean(service: str) -> None:
    assert _HADOLINT is not None
    command = [_HADOLINT, "--no-color", str(_DEPLOY / f"{service}.Dockerfile")]
    linted = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("service", _CONFIGS)
def test_the_image_is_built_in_stages_and_runs_unprivileged(service: str) -> None:
    instructions = _instructions(service)
    words = [word for word, _ in instructions]
    assert words.count("FROM") == 2
    final = instructions[len(words) - 1 - words[::-1].index("FROM") :]
    assert [rest for word, rest in final if word == "COPY"] == ["--from=build /opt/quire /opt/quire"]
    assert [rest for word, rest in final if word == "USER"] == ["10001"]
    installs = [rest for word, rest in instructions if word == "RUN" and "pip install" in rest]
    assert installs
    for rest in installs:
        assert rest.count("pip install") == rest.count("--constraint constraints.txt")
    assert f"[{service}]" in " ".join(installs)


@pytest.mark.parametrize("service", _CONFIGS)
def test_the_health_check_asks_the_port_that_the_process_listens_on(service: str) -> None:
    entry = _exec_form(service, "ENTRYPOINT")
    assert entry[:3] == ["python", "-m", f"quire_{service}"]
    config = parse(_CONFIGS[service], entry[3:], service)
    assert config.host == "0.0.0.0"
    assert _exec_form(service, "HEALTHCHECK") == ["quire", "health", f"127.0.0.1:{config.grpc_port}"]
    exposed = next(rest for word, rest in _instructions(service) if word == "EXPOSE").split()
    assert str(config.grpc_port) in exposed
    if isinstance(config, SchedulerConfig):
        assert str(config.data_port) in exposed


def test_the_compose_file_starts_the_three_services_and_wires_them_by_name() -> None:
    services = _compose()["services"]
    assert sorted(services) == sorted(_CONFIGS)
    configs = {}
    for name, service in services.items():
        build = service["build"]
        assert (_DEPLOY / build["context"] / build["dockerfile"]).resolve() == _DEPLOY / f"{name}.Dockerfile"
        flags = [*_exec_form(name, "ENTRYPOINT")[3:], *service["command"]]
        configs[name] = parse(_CONFIGS[name], flags, name)
    port = configs["scheduler"].grpc_port
    assert configs["scheduler"].advertise_host == "scheduler"
    assert configs["worker"].scheduler == f"scheduler:{port}"
    assert configs["tokenizer"].scheduler == (f"dns:///scheduler:{port}",)
    assert services["tokenizer"]["ports"] == [
        f"50051:{configs['tokenizer'].grpc_port}",
        f"8000:{configs['tokenizer'].port}",
    ]
    for name in ("scheduler", "tokenizer"):
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s * 1000 > configs[name].drain_timeout_ms


def test_the_volumes_of_the_compose_file_exist() -> None:
    compose = _compose()
    used = {
        volume.partition(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
    }
    assert used == set(compose["volumes"])


@pytest.mark.skipif(_COMPOSE is None, reason="docker-compose is not installed")
def test_the_compose_file_is_accepted_by_docker_compose() -> None:
    assert _COMPOSE is not None
    command = [_COMPOSE, "-f", str(_DEPLOY / "compose.yaml"), "config", "--quiet"]
    read = subprocess.run(command, capture_output=True, text=True, check=False)
    assert read.returncode == 0, read.stderr
