"""The example server: a face of its own over AsyncLLMEngine, with a stack of its own or beside others on one that runs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from quire import LLM, SamplingParams

_SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "api_server.py"
_BODY = {"prompt": "ROMEO:\n", "temperature": 0, "max_tokens": 40}


@contextmanager
def _server(*flags: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    command = [sys.executable, str(_SCRIPT), "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                    break
            else:
                pytest.fail("".join(lines))
            yield match[0], process
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=16, max_model_len=512) as started:
        yield started


@pytest.fixture(scope="module")
def url(llm: LLM) -> Iterator[str]:
    with _server("--address", llm.address) as (url, _process):
        yield url


def test_it_streams_what_the_engine_says(llm: LLM, url: str) -> None:
    with httpx.stream("POST", f"{url}/continue", json=_BODY) as response:
        assert response.status_code == 200
        assert float(response.headers["x-first-byte-ms"]) > 0
        pieces = list(response.iter_text())
    expected = llm.generate("ROMEO:\n", SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)
    assert "".join(pieces) == expected[0].outputs[0].text
    assert len(pieces) > 1


def test_it_starts_a_stack_of_its_own_and_takes_it_down_again(url: str) -> None:
    with _server("--max-num-seqs", "4", "--max-model-len", "512") as (own_url, process):
        stack = psutil.Process(process.pid).children(recursive=True)
        assert len(stack) >= 3
        answer = httpx.post(f"{own_url}/continue", json=_BODY, timeout=30)
        assert answer.text == httpx.post(f"{url}/continue", json=_BODY, timeout=30).text
    _ended, alive = psutil.wait_procs(stack, timeout=60)
    assert alive == []


@pytest.mark.parametrize(
    ("body", "field"),
    [({"prompt": "x", "temperature": -1}, "temperature"), ({"prompt": ""}, "text")],
)
def test_the_engine_refuses_by_name(url: str, body: dict[str, object], field: str) -> None:
    refused = httpx.post(f"{url}/continue", json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)


def test_what_the_endpoint_does_not_know_is_refused(url: str) -> None:
    refused = httpx.post(f"{url}/continue", json={"prompt": "x", "heat": 1})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "heat"]


def test_it_stays_an_example_of_forty_lines() -> None:
    source = _SCRIPT.read_text()
    docstring = ast.parse(source).body[0]
    lines = source.splitlines()[docstring.end_lineno :]
    assert sum(1 for line in lines if line.strip()) <= 40
