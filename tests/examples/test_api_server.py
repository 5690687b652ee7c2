"""The example server: a face of its own over AsyncLLMEngine."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from quire import LLM, SamplingParams

_SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "api_server.py"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(max_num_seqs=16, max_model_len=512) as started:
        yield started


@pytest.fixture(scope="module")
def url(llm: LLM) -> Iterator[str]:
    command = [sys.executable, str(_SCRIPT), "--port", "0", "--address", llm.address]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail("".join(lines))
        yield match[0]
        process.terminate()
        process.communicate(timeout=30)


def test_it_streams_what_the_engine_says(llm: LLM, url: str) -> None:
    body = {"prompt": "ROMEO:\n", "temperature": 0, "max_tokens": 40}
    with httpx.stream("POST", f"{url}/continue", json=body) as response:
        assert response.status_code == 200
        assert float(response.headers["x-first-byte-ms"]) > 0
        pieces = list(response.iter_text())
    expected = llm.generate("ROMEO:\n", SamplingParams(temperature=0, max_tokens=40), use_tqdm=False)
    assert "".join(pieces) == expected[0].outputs[0].text
    assert len(pieces) > 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "heat": 1}, "heat"),
        ({"prompt": ""}, "text"),
    ],
)
def test_it_refuses_by_name(url: str, body: dict[str, object], field: str) -> None:
    refused = httpx.post(f"{url}/continue", json=body)
    assert (refused.status_code, refused.json()["field"]) == (400, field)


def test_it_stays_an_example_of_forty_statements() -> None:
    tree = ast.parse(_SCRIPT.read_text())
    lines = {node.lineno for node in ast.walk(tree) if isinstance(node, ast.stmt)}
    assert len(lines) <= 40
