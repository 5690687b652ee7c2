"""The shipped model: small, loadable by others, as good as its card says, and no copy of its text.

Figures are taken twice, by transformers here and by the example's own script, on a slice of the held-out text.
"""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, AutoTokenizer

from quire.assets import shipped_model_path

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_model"
TEXT = EXAMPLE / "tinyshakespeare.txt"
SLICE_CHARS = 6_000
MAX_DIRECTORY_BYTES = 12_000_000
MAX_BITS_PER_BYTE = 2.4
TINY_SIZES = {
    "vocab-size": 300,
    "hidden-size": 32,
    "intermediate-size": 48,
    "num-hidden-layers": 1,
    "num-attention-heads": 2,
    "num-key-value-heads": 1,
    "head-dim": 16,
    "max-position-embeddings": 512,
    "window-len": 64,
    "num-steps": 20,
    "batch-size": 4,
    "num-samples": 2,
}
TINY = ["--device", "cpu", *(f"--{name}={size}" for name, size in TINY_SIZES.items())]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(shipped_model_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(shipped_model_path(), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def held_out() -> str:
    text = TEXT.read_text(encoding="utf-8")
    return text[int(len(text) * 0.9) :]


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What the example's own evaluation says; it exits with 1 where a sample copied a run of 20 tokens."""
    arguments = [str(shipped_model_path()), str(TEXT), "--num-samples", "12", "--max-chars", str(SLICE_CHARS)]
    return json.loads(_run("evaluate.py", *arguments).stdout)


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)


def _longest_run(source_ids: list[int], token_ids: list[int]) -> int:
    spec = importlib.util.spec_from_file_location("copied_run", EXAMPLE / "copied_run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CopiedRunFinder(source_ids).longest_run(token_ids)


@torch.no_grad()
def _bits(model: Any, token_ids: list[int]) -> float:
    """Bits of `token_ids` in windows of 1024 tokens, 512 apart, the first token predicted from end-of-text."""
    stream = torch.tensor([0, *token_ids])
    nats, scored = 0.0, 0
    while scored < len(token_ids):
        begin = max(0, scored - 512)
        end = min(begin + 1024, len(token_ids))
        log_probs = model(stream[None, begin:end]).logits[0].log_softmax(dim=-1)
        targets = stream[begin + 1 : end + 1, None]
        nats -= float(log_probs.gather(1, targets)[scored - begin :].sum())
        scored = end
    return nats / math.log(2)


@torch.no_grad()
def _sampled_bits_per_byte(model: Any, tokenizer: Any, text: str) -> float:
    """The card's measure in every eighth of its windows, spread over the whole text: each scores its second half."""
    token_ids = tokenizer(text, verbose=False)["input_ids"]
    nats, num_bytes = 0.0, 0
    for begin in range(0, len(token_ids) - 1024, 8 * 512):
        window = torch.tensor([token_ids[begin : begin + 1024]])
        log_probs = model(window).logits[0, 511:-1].log_softmax(dim=-1)
        nats -= float(log_probs.gather(1, window[0, 512:, None]).sum())
        num_bytes += len(tokenizer.decode(window[0, 512:]).encode())
    return nats / math.log(2) / num_bytes


def test_directory_is_complete_and_within_its_size() -> None:
    sizes = {path.name: path.stat().st_size for path in shipped_model_path().iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(sizes)
    assert {"tokenizer_config.json", "README.md"} <= set(sizes)
    assert sum(sizes.values()) <= MAX_DIRECTORY_BYTES


def test_turn_end_is_among_the_ends_that_stop_generation(model: Any, tokenizer: Any) -> None:
    ends = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert model.generation_config.eos_token_id == ends
    assert model.config.eos_token_id == ends[0]


@pytest.mark.parametrize("text", ["To be, or not to be", "é漢🙂", "".join(map(chr, range(256))), "\n\n  \t"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    token_ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(token_ids) == text
    assert max(token_ids) < len(tokenizer)


def test_held_out_text_costs_what_the_card_allows_and_both_implementations_agree(
    model: Any, tokenizer: Any, held_out: str, figures: dict[str, Any]
) -> None:
    part = held_out[:SLICE_CHARS]
    bits_per_byte = _bits(model, tokenizer(part)["input_ids"]) / len(part.encode())
    assert bits_per_byte <= MAX_BITS_PER_BYTE
    assert figures["held_out_bits_per_byte"] == pytest.approx(bits_per_byte, rel=1e-4)


def test_card_states_the_held_out_loss_that_the_files_give(model: Any, tokenizer: Any, held_out: str) -> None:
    card = (shipped_model_path() / "README.md").read_text(encoding="utf-8")
    stated = float(card.partition("Held-out loss: **")[2].partition(" bits per byte")[0])
    measured = _sampled_bits_per_byte(model, tokenizer, held_out)
    print(f"{measured:.3f} bits per byte in every eighth window, the card says {stated}")
    assert max(stated, measured) <= MAX_BITS_PER_BYTE
    assert measured == pytest.approx(stated, rel=0.05)


def test_samples_copy_no_run_of_20_tokens(figures: dict[str, Any]) -> None:
    assert figures["num_samples"] == 24
    assert figures["samples_with_copied_run"] == {"temperature 1": 0, "default sampling": 0}


def test_a_copied_run_is_found_wherever_it_stands(tokenizer: Any, held_out: str) -> None:
    source = tokenizer(held_out[:SLICE_CHARS])["input_ids"]
    planted = [1, 2, *source[777:802], 1, 2]
    assert _longest_run(source, planted) == 25
    broken = [*planted[:14], 1, *planted[15:]]
    assert 12 <= _longest_run(source, broken) < 20


def test_chat_template_renders_every_role_and_opens_the_answer(tokenizer: Any) -> None:
    messages = [{"role": role, "content": role.upper()} for role in ("system", "user", "assistant", "user")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\nUSER<|im_end|>\n"
        "<|im_start|>assistant\nASSISTANT<|im_end|>\n<|im_start|>user\nUSER<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(tokenizer(rendered)["input_ids"]) == rendered


def test_chat_template_refuses_an_unknown_role(tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match=r"role must be one of system, user, assistant, not jester"):
        tokenizer.apply_chat_template([{"role": "jester", "content": "Nuncle!"}], tokenize=False)


def test_chat_answer_ends_by_itself(model: Any, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Who comes there?"}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    answers = model.generate(**prompt, max_new_tokens=150, num_return_sequences=4)
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (answers[:, prompt["input_ids"].shape[1] :] == turn_end).any(dim=1).sum() >= 3


def test_training_script_writes_a_model_that_loads(tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "model"
    text.write_text(TEXT.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    finished = _run("train.py", str(text), "--out", str(out), *TINY)
    assert finished.returncode == 0, finished.stderr
    trained = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert trained.config.vocab_size == len(AutoTokenizer.from_pretrained(out)) == 300
    assert "bits per byte" in (out / "README.md").read_text(encoding="utf-8")


def test_training_script_refuses_a_text_that_is_too_short(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a", encoding="utf-8")
    finished = _run("train.py", str(text), "--out", str(tmp_path / "model"), *TINY)
    assert finished.returncode == 2
    assert "too few to hold a tenth of them out" in finished.stderr
    assert "Traceback" not in finished.stderr
