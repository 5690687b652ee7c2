"""One front door before two schedulers, each with a worker of another model: both are listed, and `model` decides who answers."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import torch

from quire.assets import shipped_model_path
from quire.v1 import scheduler_pb2, scheduler_pb2_grpc
from tests.tokenizer.families import word_level
from tests.tokenizer.stack import scheduler, service, tokenizer
from tests.worker.tiny_model import TinyModel, make_tiny_model

_SHIPPED, _WORDS = "quire-shakespeare", "words"
_PROMPT_IDS = [6, 7, 999]
_PROMPT = "w5 w6 w998"


@dataclass(frozen=True)
class _Stack:
    client: openai.OpenAI
    schedulers: dict[str, str]
    """Address of each model's scheduler."""
    words: TinyModel

    def num_generated(self, model: str) -> int:
        """Tokens that a model's own scheduler has seen."""
        with grpc.insecure_channel(self.schedulers[model]) as channel:
            stub = scheduler_pb2_grpc.SchedulerServiceStub(channel)
            return stub.GetStats(scheduler_pb2.GetStatsRequest()).num_generated_tokens


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Stack]:
    folder = tmp_path_factory.mktemp("words")
    words = make_tiny_model(folder, vocab_size=1000)
    word_level().save(str(folder / "tokenizer.json"))
    with (
        scheduler() as a,
        scheduler() as b,
        _worker(a.address, shipped_model_path(), _SHIPPED),
        _worker(b.address, folder, _WORDS),
        tokenizer(f"{a.address},{b.address}", "--served-model-name", _SHIPPED) as front,
        openai.OpenAI(base_url=f"{front.http_url}/v1", api_key="none", max_retries=10) as client,
    ):
        for model in (_SHIPPED, _WORDS):
            # Both are live before the first test; the client tries again while one is not.
            client.completions.create(model=model, prompt=[3], max_tokens=1)
        yield _Stack(client, {_SHIPPED: a.address, _WORDS: b.address}, words)


def _worker(address: str, model: Path, name: str) -> Any:
    flags = ("--scheduler", address, "--model", str(model), "--served-model-name", name)
    return service("quire_worker", *flags, "--device", "cpu", "--max-num-seqs", "4", "--dtype", "float32")


def _greedy(words: TinyModel, num_tokens: int) -> list[int]:
    ids = torch.tensor([_PROMPT_IDS])
    out = words.reference.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens, pad_token_id=0
    )
    return out[0, len(_PROMPT_IDS) :].tolist()


def test_all_models_are_listed(stack: _Stack) -> None:
    assert sorted(model.id for model in stack.client.models.list()) == [_SHIPPED, _WORDS]
    assert stack.client.models.retrieve(_WORDS).id == _WORDS


def test_each_model_answers_with_its_own_words_from_its_own_scheduler(stack: _Stack) -> None:
    for model, prompt in ((_SHIPPED, "ROMEO:\n"), (_WORDS, _PROMPT)):
        other = next(name for name in stack.schedulers if name != model)
        before = stack.num_generated(model), stack.num_generated(other)
        body: Any = {"model": model, "prompt": prompt, "max_tokens": 9, "temperature": 0}
        answer = stack.client.completions.create(
            **body, extra_body={"return_token_ids": True, "ignore_eos": True}
        )
        assert answer.model == model
        assert stack.num_generated(model) - before[0] == 9
        assert stack.num_generated(other) == before[1]
    (choice,) = answer.choices
    token_ids = (choice.model_extra or {})["token_ids"]
    assert choice.text == word_level().decode(token_ids)
    expected = _greedy(stack.words, 9)
    assert token_ids[: len(expected)] == expected


def test_streams_of_both_run_side_by_side(stack: _Stack) -> None:
    def run(model: str) -> str:
        body: Any = {"model": model, "prompt": _PROMPT, "max_tokens": 40, "temperature": 0}
        chunks = list(stack.client.completions.create(**body, stream=True))
        assert {chunk.model for chunk in chunks} == {model}
        return "".join(chunk.choices[0].text for chunk in chunks)

    alone = {model: run(model) for model in stack.schedulers}
    asked = [model for _ in range(4) for model in stack.schedulers]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(run, asked)) == [alone[model] for model in asked]


@pytest.mark.parametrize("model", ["", "no-such-model"])
def test_who_names_neither_is_told_both(stack: _Stack, model: str) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        stack.client.completions.create(model=model, prompt="a", max_tokens=1)
    assert _SHIPPED in refused.value.message and _WORDS in refused.value.message
