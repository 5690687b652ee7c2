"""The commands beside `serve`, as a user meets them: real processes, the shipped model."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ship.served import Served, running_stack

QUIRE = [sys.executable, "-m", "quire.cli.main"]
COMMANDS = ["serve", "generate", "chat", "bench", "health", "env"]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with running_stack("--max-num-seqs", "8") as running:
        yield running


@pytest.fixture(scope="module")
def address(served: Served) -> str:
    return served.address


def _quire(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*QUIRE, *words], input=stdin, capture_output=True, text=True, timeout=90, check=False
    )


def test_a_reader_that_has_enough_is_no_error() -> None:
    with subprocess.Popen(
        [*QUIRE, "env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_help_groups_the_commands() -> None:
    shown = _quire("--help")
    assert shown.returncode == 0
    for word in (*COMMANDS, "Serve", "Talk to a running server", "Measure and look"):
        assert word in shown.stdout


def test_help_of_serve_groups_its_flags() -> None:
    shown = _quire("serve", "--help")
    assert shown.returncode == 0
    for heading in ("model:", "batching:", "device and KV cache:", "addresses and processes:"):
        assert f"\n{heading}\n" in shown.stdout


def test_an_unknown_flag_is_refused_by_name() -> None:
    refused = _quire("serve", "--no-such-flag")
    assert refused.returncode == 1
    assert refused.stderr == "quire serve: unrecognized arguments: --no-such-flag\n"


def test_env_says_what_was_found_and_what_would_be_used() -> None:
    shown = _quire("env", "--json", "--device", "cpu", "--dtype", "bfloat16")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(shown.stdout)
    import torch

    assert document["found"]["torch"] == torch.__version__
    assert document["found"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    used = document["would be used"]
    assert (used["device"], used["dtype"], used["kv_cache_dtype"]) == ("cpu", "bfloat16", "bfloat16")
    assert used["attention"] == "quire_kernels.attention.cpu"


def test_env_says_why_a_worker_would_not_start() -> None:
    shown = _quire("env", "--device", "cpu", "--model", "/no/such/model")
    assert shown.returncode == 0
    assert "--model=/no/such/model" in shown.stdout


def test_chat_keeps_the_conversation_and_its_commands_change_it(address: str) -> None:
    flags = ("--address", address, "--seed", "5", "--max-tokens", "40")
    first = _quire("chat", *flags, stdin="Speak, ROMEO\n").stdout
    twice = _quire("chat", *flags, stdin="Speak, ROMEO\nSpeak, ROMEO\n").stdout
    anew = _quire("chat", *flags, stdin="Speak, ROMEO\n/reset\nSpeak, ROMEO\n/exit\nnever read\n").stdout
    system = _quire("chat", *flags, stdin="/system Be a nurse.\nSpeak, ROMEO\n").stdout
    by_flag = _quire("chat", *flags, "--system", "Be a nurse.", stdin="Speak, ROMEO\n").stdout
    assert len(first) > 5
    assert anew == first * 2
    assert twice.startswith(first)
    assert twice != anew, "the second answer must know the first"
    assert system == by_flag != first


def test_chat_over_http_says_what_it_says_over_grpc(served: Served) -> None:
    flags = ("--seed", "5", "--max-tokens", "30", "--stop", "thee")
    lines = "/system Be a nurse.\nSpeak, ROMEO\nAgain\n"
    over_grpc = _quire("chat", "--address", served.address, *flags, stdin=lines)
    over_http = _quire("chat", "--address", served.url, *flags, stdin=lines)
    assert over_http.returncode == 0, over_http.stderr
    assert over_http.stdout == over_grpc.stdout
    assert len(over_http.stdout) > 10


def test_chat_tells_a_failed_answer_and_goes_on(served: Served) -> None:
    for where in (served.address, served.url):
        shown = _quire("chat", "--address", where, "--model", "other", stdin="a\nb\n")
        assert shown.returncode == 1
        assert shown.stderr.count("model='other' is not served here") == 2
    away = _quire("chat", "--address", "http://127.0.0.1:9", stdin="a\n")
    assert away.stderr.startswith("quire chat: no answer from 127.0.0.1:9")


def test_generate_shows_each_of_n_sequences(address: str) -> None:
    flags = ("--address", address, "--seed", "3", "--max-tokens", "10")
    shown = _quire("generate", "ROMEO:", *flags, "--n", "3")
    assert shown.returncode == 0, shown.stderr
    assert [f"[{i}] " in shown.stdout for i in range(3)] == [True] * 3
    streamed = _quire("generate", "ROMEO:", *flags)
    assert _quire("generate", "ROMEO:", *flags, "--no-stream").stdout == streamed.stdout


def test_generate_lists_log_probabilities_after_the_text(address: str) -> None:
    flags = ("--address", address, "--temperature", "0", "--max-tokens", "3")
    plain = _quire("generate", "ROMEO:", *flags)
    shown = _quire("generate", "ROMEO:", *flags, "--logprobs", "2", "--prompt-logprobs", "0")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(plain.stdout)
    of_prompt, of_output = (
        part.split("\n")[1:] for part in shown.stdout.rstrip().rsplit("\n\nlog-probability", 2)[1:]
    )
    assert of_prompt[0].split()[:2] == ["-", "-"]
    assert [json.loads(line.split(maxsplit=2)[2]) for line in of_prompt[1:]][-1] == ":"
    assert len(of_output) == 3
    for line in of_output:
        logprob, rank, texts = line.split(maxsplit=2)
        assert float(logprob) <= 0
        assert rank == "1", "greedy"
        assert texts.count(logprob) == 1, "the token is the first of its alternatives"
    refused = _quire("generate", "ROMEO:", *flags, "--prompt-logprobs", "21")
    assert "prompt_logprobs=21: must be from 0 to 20" in refused.stderr


def test_generate_takes_a_file(address: str, tmp_path: Path) -> None:
    file = tmp_path / "generate.yaml"
    file.write_text(f"address: {address}\ntemperature: 0\nmax_tokens: 20\nstop: [e, o]\n")
    shown = _quire("generate", "ROMEO:", "--config", str(file))
    assert shown.returncode == 0, shown.stderr
    free = _quire("generate", "ROMEO:", "--config", str(file), "--stop", "§").stdout
    assert free.startswith(shown.stdout.rstrip("\n"))
    assert not {"e", "o"} & set(shown.stdout)
    assert len(free) > len(shown.stdout)
