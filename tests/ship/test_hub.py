"""Hub ids load through huggingface_hub, at both ends of the stack: revision, token, shards, and the offline cache."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quire.assets import shipped_model_path
from tests.doubles.fake_hub import MODEL, TOKEN, FakeHub, running_hub
from tests.ship.served import QUIRE, running_stack

_PROMPT = "To be, or not to be"
_NUM_TOKENS = 12
_FLAGS = ("--max-num-seqs", "4", "--num-gpu-blocks-override", "64", "--served-model-name", "tiny")


def _make_commit(directory: Path, seed: int) -> None:
    """A sharded random model with the shipped tokenizer, and files that nobody should fetch."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(shipped_model_path())
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.3,
        dtype="float32",
    )
    LlamaForCausalLM(config).save_pretrained(directory, max_shard_size="100KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(shipped_model_path() / name, directory)
    (directory / "pytorch_model.bin").write_bytes(b"not safetensors")
    (directory / "README.md").write_text("A model card.")


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in ("main", "v2")}
    for seed, directory in enumerate(made.values()):
        _make_commit(directory, seed)
        assert len(list(directory.glob("*.safetensors"))) > 2
    return made


@pytest.fixture
def hub(commits: dict[str, Path]) -> Iterator[FakeHub]:
    with running_hub(commits) as running:
        yield running


def _environment(hub: FakeHub, home: Path, **variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        **variables,
    }


def _reference(directory: Path) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer(_PROMPT)["input_ids"]])
    out = model.generate(ids, max_new_tokens=_NUM_TOKENS, min_new_tokens=_NUM_TOKENS, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :].tolist(), skip_special_tokens=True)


def _served_text(env: dict[str, str], *flags: str) -> str:
    with running_stack("--model", MODEL, *_FLAGS, *flags, env=env) as served:
        command = [*QUIRE, "generate", _PROMPT, "--address", served.address, "--temperature", "0"]
        command += ["--max-tokens", str(_NUM_TOKENS)]
        generated = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert generated.returncode == 0, generated.stderr
    return generated.stdout.removesuffix("\n")


def test_a_revision_is_fetched_with_the_token_and_serves_again_offline(
    hub: FakeHub, commits: dict[str, Path], tmp_path: Path
) -> None:
    texts = {name: _reference(directory) for name, directory in commits.items()}
    assert texts["main"] != texts["v2"]
    flags = ("--revision", "v2", "--download-dir", str(tmp_path / "models"))
    assert _served_text(_environment(hub, tmp_path, HF_TOKEN=TOKEN), *flags) == texts["v2"]
    shards = {path.name for path in commits["v2"].glob("*.safetensors")}
    assert shards | {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= hub.downloaded()
    assert not {"pytorch_model.bin", "README.md"} & hub.downloaded()
    assert hub.num_refused == 0

    hub.requests.clear()
    offline = _environment(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert _served_text(offline, *flags) == texts["v2"]
    assert (hub.requests, hub.num_refused) == ([], 0)


def test_without_a_revision_the_main_branch_is_served(
    hub: FakeHub, commits: dict[str, Path], tmp_path: Path
) -> None:
    assert _served_text(_environment(hub, tmp_path, HF_TOKEN=TOKEN)) == _reference(commits["main"])


@pytest.mark.parametrize("service", ["quire_worker", "quire_tokenizer"])
@pytest.mark.parametrize(
    ("flags", "variables", "message"),
    [
        ((), {}, f"--model={MODEL}: neither a directory nor a model that the hub gave"),
        (("--revision", "v9"), {"HF_TOKEN": TOKEN}, f"--model={MODEL} at revision v9: neither"),
        ((), {"HF_HUB_OFFLINE": "1"}, f"--model={MODEL}: neither"),
    ],
    ids=["no token", "no such revision", "offline with an empty cache"],
)
def test_what_the_hub_does_not_give_is_refused_at_start(
    service: str,
    flags: tuple[str, ...],
    variables: dict[str, str],
    message: str,
    hub: FakeHub,
    tmp_path: Path,
) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", service, "--model", MODEL, "--grpc-port", "0", *flags],
        env=_environment(hub, tmp_path, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "HTTP Request" not in refused.stderr, "one log line per request of the hub's client is noise"
