"""The other ways to start the whole stack: vLLM's name of the program, and a file instead of flags."""

import shutil
import sys
from pathlib import Path

import openai

from quire.assets import shipped_model_path
from tests.ship.served import running_stack

_API_SERVER = [sys.executable, "-m", "quire.entrypoints.openai.api_server"]


def _say(url: str, model: str) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [each.id for each in client.models.list()] == [model]
        return (
            client.completions.create(model=model, prompt="ROMEO:\n", temperature=0, max_tokens=10)
            .choices[0]
            .text
        )


def test_vllms_program_and_a_file_of_settings_serve_the_same(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(shipped_model_path(), model)
    flags = ("--model", str(model), "--host", "127.0.0.1", "--served-model-name", "mine")
    with running_stack(*flags, "--max-num-seqs", "4", command=_API_SERVER) as served:
        said = _say(served.url, "mine")
    assert said
    file = tmp_path / "serve.yaml"
    file.write_text(
        f"model: {model}\nhost: 127.0.0.1\nserved-model-name: [mine]\nmax_num_seqs: 4\nmax_model_len: 64\n"
    )
    with running_stack("--config", str(file)) as served:
        assert _say(served.url, "mine") == said
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
            (model,) = client.models.list()
            assert (model.model_extra or {})["max_model_len"] == 64
