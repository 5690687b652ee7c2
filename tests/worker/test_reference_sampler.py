"""Whatever SamplingParams say, a text is token for token what an obvious sampler draws from transformers' logits.

The parameters go the way of a client's: through the message, the scheduler's admission, the core, the wire and the
worker. The reference sees the prompt and what came of it in one forward pass, and must choose every token itself.
"""

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quire_scheduler.admission import build_request
from quire_scheduler.core import FinishReason, OwnerId, Sampling
from quire_worker.loading import LoadedModel
from transformers import PreTrainedModel

from quire.errors import InvalidRequest
from quire.sampling_params import SamplingParams
from quire.v1 import scheduler_pb2, tokenizer_pb2
from tests.worker.driver import Driver, Output
from tests.worker.reference_sampler import ReferenceSampler, philox4x32
from tests.worker.tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, load_tiny, make_tiny_model

_TIE = 1e-5
_EOS = 1
_STATE = scheduler_pb2.ServingState(
    ready=True, max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, eos_token_ids=[_EOS], max_num_seqs=32
)
_PLAIN: dict[str, Any] = {"temperature": 1.0, "seed": 11, "max_tokens": 40, "ignore_eos": True}
_NARROW = {**_PLAIN, "allowed_token_ids": range(5, 25)}
"""Few tokens, so that words of several tokens and repetitions come up."""
_SOON = {**_PLAIN, "ignore_eos": False, "logit_bias": {_EOS: 6.0}}
"""An end of sequence within a few tokens."""


@dataclass(frozen=True)
class Model:
    """Both sides of the comparison."""

    reference: PreTrainedModel
    loaded: LoadedModel


@dataclass(frozen=True, slots=True)
class Change:
    """One parameter changed, where it makes a difference."""

    field: str
    value: Any
    base: dict[str, Any]
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __str__(self) -> str:
        return f"{self.field}-{self.value}"


_WORDS = tuple((first, second) for first in range(5, 25) for second in range(5, 15))
_CHANGES = [
    Change("temperature", 0.0, _PLAIN),
    Change("temperature", 0.3, _PLAIN),
    Change("temperature", 2.0, _PLAIN),
    Change("top_p", 0.5, _PLAIN),
    Change("top_p", 0.95, _PLAIN),
    Change("top_k", 1, _PLAIN),
    Change("top_k", 10, _PLAIN),
    Change("min_p", 0.2, _PLAIN),
    Change("seed", 12, _PLAIN),
    Change("seed", -(2**62) - 5, _PLAIN),
    Change("presence_penalty", 2.0, _NARROW),
    Change("presence_penalty", -1.5, _NARROW),
    Change("frequency_penalty", 1.5, _NARROW),
    Change("frequency_penalty", -0.5, _PLAIN),
    Change("repetition_penalty", 1.8, _NARROW),
    Change("repetition_penalty", 0.5, _PLAIN),
    Change("max_tokens", 7, _PLAIN),
    Change("min_tokens", 30, _SOON),
    Change("ignore_eos", True, _SOON),
    Change("stop_token_ids", [*range(5, 10)], _NARROW),
    Change("logit_bias", {7: 8.0, 9: 7.5, 300: -100.0}, _PLAIN),
    Change("logit_bias", dict.fromkeys(range(0, VOCAB_SIZE, 2), -3.0), {**_PLAIN, "temperature": 0.0}),
    Change("allowed_token_ids", [3, 30, 31, 200], _PLAIN),
    Change("allowed_token_ids", [*range(100)], {**_PLAIN, "top_k": 200, "top_p": 0.9}),
    Change("bad_words", ["of one token each"], _NARROW, tuple((token,) for token in range(5, 15))),
    Change("bad_words", ["of two"], _NARROW, _WORDS[:150]),
    Change("bad_words", ["of three"], {**_NARROW, "allowed_token_ids": [5, 6, 7]}, ((5, 6, 7), (7, 7, 7), (6, 5, 6))),
]  # fmt: skip
_TOGETHER: list[tuple[dict[str, Any], tuple[tuple[int, ...], ...]]] = [
    ({"temperature": 0.7, "top_p": 0.9, "top_k": 40, "min_p": 0.02, "seed": 3}, ()),
    ({"temperature": 1.5, "top_p": 0.8, "repetition_penalty": 1.3, "frequency_penalty": 0.4, "seed": 4}, ()),
    ({"temperature": 0.9, "min_p": 0.05, "presence_penalty": 1.0, "logit_bias": {4: 5.0, 8: 4.0}, "seed": 5}, ((4, 8),)),
    ({"temperature": 0.0, "repetition_penalty": 1.2, "logit_bias": {4: 5.0}, "allowed_token_ids": range(50)}, ((4,), (5, 6))),
    ({"temperature": 1.2, "top_k": 5, "allowed_token_ids": range(0, 60, 3), "frequency_penalty": 1.0, "seed": 6}, _WORDS[:9]),
    ({"temperature": 1.0, "min_tokens": 20, "stop_token_ids": [*range(100)], "top_p": 0.7, "seed": 8}, ()),
    ({"temperature": 0.8, "min_tokens": 5, "logit_bias": {_EOS: 4.0}, "presence_penalty": -1.0, "seed": 9}, ((_EOS, 7),)),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    tiny = make_tiny_model(tmp_path_factory.mktemp("model"), "llama")
    return Model(tiny.reference, load_tiny(tiny.directory))


def test_noise_is_that_of_the_published_vectors() -> None:
    assert philox4x32((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)


@pytest.mark.parametrize("change", _CHANGES, ids=str)
def test_changing_a_parameter_changes_the_text_as_the_reference_says(change: Change, model: Model) -> None:
    changed = SamplingParams(**{**change.base, change.field: change.value})
    before, after = _generate(
        model, [(SamplingParams(**change.base), ()), (changed, change.bad_words)], _prompt(1)
    )
    assert before.token_ids != after.token_ids
    _check(model, SamplingParams(**change.base), (), before)
    _check(model, changed, change.bad_words, after)


def test_combinations_side_by_side_are_what_the_reference_draws(model: Model) -> None:
    cases = [
        (SamplingParams(**{"max_tokens": 48, **values, "seed": values.get("seed", 0) + 100 * seed}), words)
        for values, words in _TOGETHER
        for seed in range(3)
    ]
    outputs = _generate(model, cases, _prompt(2))
    num_ties = sum(
        _check(model, *case, output, prompt=_prompt(2)) for case, output in zip(cases, outputs, strict=True)
    )
    num_tokens = sum(len(output.token_ids) for output in outputs)
    print(f"\n{num_tokens} tokens of {len(cases)} combinations and seeds, of which {num_ties} ties")
    assert num_ties * 1000 <= num_tokens


def test_each_of_several_sequences_is_what_the_reference_draws_for_its_index(model: Model) -> None:
    params = SamplingParams(**{**_NARROW, "n": 3, "presence_penalty": 0.5})
    driver = Driver.of(model.loaded)
    handle = driver.add(_prompt(1), _admitted(params, _WORDS[:40]))
    outputs = driver.run()
    assert len({tuple(outputs[handle, index].token_ids) for index in range(3)}) == 3
    for index in range(3):
        _check(model, params, _WORDS[:40], outputs[handle, index], index=index)


def test_a_sequence_that_was_preempted_keeps_to_its_bad_words_and_biases(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, "llama")
    model = Model(tiny.reference, load_tiny(tmp_path, num_gpu_blocks_override=48))
    params = SamplingParams(**{**_NARROW, "max_tokens": 120, "frequency_penalty": 0.2})
    driver = Driver.of(model.loaded)
    cases = [(replace(params, seed=seed), _WORDS[: 10 * seed]) for seed in range(12)]
    handles = [driver.add(_prompt(3), _admitted(*case)) for case in cases]
    outputs = driver.run()
    assert driver.stats.num_preemptions > 5
    for handle, case in zip(handles, cases, strict=True):
        _check(model, *case, outputs[handle, 0], prompt=_prompt(3))


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_request_that_is_left_without_a_token_ends_alone_with_an_error(
    temperature: float, depth: int, model: Model
) -> None:
    others = [SamplingParams(**{**_NARROW, "seed": seed}) for seed in range(3)]
    expected = [output.token_ids for output in _generate(model, [(each, ()) for each in others], _prompt(1))]
    params = SamplingParams(
        temperature=temperature, seed=7, n=2, max_tokens=40, allowed_token_ids=[5, 6, 7], logprobs=1
    )
    words = tuple((first, second, last) for first in (5, 6, 7) for second in (5, 6, 7) for last in (5, 6, 7))
    driver = Driver.of(model.loaded, pipeline_depth=depth)
    first = driver.add(_prompt(1), _admitted(others[0]))
    stuck = driver.add(_prompt(1), _admitted(params, words))
    handles = [first, *(driver.add(_prompt(1), _admitted(each)) for each in others[1:])]
    outputs = driver.run(may_fail=True)
    assert [outputs[handle, 0].token_ids for handle in handles] == expected
    assert driver.failures.keys() == {stuck}
    failure = driver.failures[stuck]
    assert (failure.code, failure.field) == (3, "allowed_token_ids")
    assert failure.message.startswith("allowed_token_ids: no token is left to draw: ")
    assert len(outputs[stuck, 0].token_ids) == 2, "any two tokens forbid all that could be the third"
    assert driver.stats.num_used_blocks == 0


@pytest.mark.parametrize(
    ("values", "words", "rule"),
    [
        ({"min_tokens": 1, "allowed_token_ids": [_EOS]}, (), "min_tokens=1 forbids what is left of them"),
        (
            {"min_tokens": 3, "allowed_token_ids": [_EOS, 9], "stop_token_ids": [9]},
            (),
            "min_tokens=3 forbids",
        ),
        ({"allowed_token_ids": [8, 9]}, ((8,), (9,), (7, 7)), "bad_words forbids all of them"),
        ({"min_tokens": 1, "allowed_token_ids": [_EOS, 9]}, ((9,),), "min_tokens=1 forbids what is left"),
    ],
)
def test_a_request_that_could_never_draw_is_refused_by_name(
    values: dict[str, Any], words: tuple[tuple[int, ...], ...], rule: str
) -> None:
    with pytest.raises(InvalidRequest, match=rf"^allowed_token_ids=\[.+\]: {rule}") as refused:
        _admitted(SamplingParams(**values), words)
    assert refused.value.field == "allowed_token_ids"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"allowed_token_ids": [_EOS]}, ()),
        ({"min_tokens": 1, "allowed_token_ids": [_EOS], "ignore_eos": True}, ()),
        ({"min_tokens": 1, "allowed_token_ids": [_EOS, 9]}, ((9, 9),)),
        ({"min_tokens": 1, "allowed_token_ids": [8], "logit_bias": {8: -100.0}}, ()),
    ],
)
def test_a_request_that_can_draw_something_is_taken(
    values: dict[str, Any], words: tuple[tuple[int, ...], ...], model: Model
) -> None:
    (output,) = _generate(model, [(SamplingParams(**{**values, "max_tokens": 1}), words)], _prompt(1))
    assert len(output.token_ids) == 1
    assert output.token_ids[0] in values["allowed_token_ids"]


@pytest.mark.parametrize("num_alternatives", [0, 3, 20])
def test_prompt_logprobs_are_those_of_the_reference_though_the_prompt_is_cached(
    num_alternatives: int, model: Model
) -> None:
    prompt = _prompt(4, 600)
    plain = SamplingParams(**{**_PLAIN, "max_tokens": 5})
    driver = Driver.of(model.loaded)
    handles = [driver.add(prompt, _admitted(plain))]
    driver.run()
    asking = replace(plain, prompt_logprobs=num_alternatives, n=2)
    handles += [driver.add(prompt, _admitted(params)) for params in (asking, plain, asking)]
    handles.append(driver.add([7], _admitted(asking)))
    outputs = driver.run()
    assert driver.stats.num_prefix_hit_tokens > 500, "the plain one takes the cached prompt"
    assert set(driver.prompt_logprobs) == {handles[1], handles[3]}
    for handle in (handles[1], handles[3]):
        _check_prompt(model, prompt, driver.prompt_logprobs[handle], num_alternatives)
    assert len({tuple(outputs[handle, 0].token_ids) for handle in handles[:-1]}) == 1


def test_prompt_logprobs_are_told_once_however_often_the_prompt_is_computed(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, "llama")
    model = Model(tiny.reference, load_tiny(tmp_path, num_gpu_blocks_override=48))
    params = SamplingParams(**{**_PLAIN, "max_tokens": 120, "prompt_logprobs": 1, "n": 2})
    driver = Driver.of(model.loaded)
    handles = [driver.add(_prompt(seed, 90), _admitted(params)) for seed in range(8)]
    driver.run(num_steps=3)
    driver.lose_worker()
    driver.run()
    assert driver.stats.num_preemptions > 5
    for seed, handle in enumerate(handles):
        _check_prompt(model, _prompt(seed, 90), driver.prompt_logprobs[handle], 1)


def _check_prompt(
    model: Model, prompt: list[int], tokens: list[list[tuple[int, float, int]]], num_alternatives: int
) -> None:
    expected = torch.from_numpy(_logits(model.reference, prompt)).double().log_softmax(1)
    assert len(tokens) == len(prompt) - 1
    for row, token, entries in zip(expected, prompt[1:], tokens, strict=False):
        own, *alternatives = entries
        assert own[0] == token
        assert own[1] == pytest.approx(float(row[token]), abs=1e-4)
        assert int((row > row[token] + _TIE).sum()) < own[2] <= int((row >= row[token] - _TIE).sum())
        assert len(alternatives) == num_alternatives
        best = row.topk(num_alternatives).values
        for number, (alternative, logprob, rank) in enumerate(alternatives):
            assert rank == number + 1
            assert logprob == pytest.approx(float(best[number]), abs=1e-4)
            assert float(row[alternative]) == pytest.approx(logprob, abs=1e-4)


def _prompt(seed: int, length: int = 30) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(2, VOCAB_SIZE) for _ in range(length)]


def _admitted(params: SamplingParams, bad_words: tuple[tuple[int, ...], ...] = ()) -> Sampling:
    """The core's parameters, made as for a request of an attached front door."""
    message = params.to_proto()
    del message.bad_words[:]
    admission = scheduler_pb2.Admission(
        request_id="r",
        prompt_token_ids=_prompt(1),
        sampling_params=message,
        bad_words_token_ids=[tokenizer_pb2.TokenIds(ids=word) for word in bad_words],
    )
    return build_request(admission, OwnerId(1), _STATE).sampling


def _generate(
    model: Model, cases: list[tuple[SamplingParams, tuple[tuple[int, ...], ...]]], prompt: list[int]
) -> list[Output]:
    return Driver.of(model.loaded).generate([(prompt, _admitted(*case)) for case in cases])


def _check(
    model: Model,
    params: SamplingParams,
    bad_words: tuple[tuple[int, ...], ...],
    output: Output,
    *,
    prompt: list[int] | None = None,
    index: int = 0,
) -> int:
    """Draws the text again by the reference; returns how many ties it took."""
    prompt = prompt or _prompt(1)
    drawn = output.token_ids
    logits = _logits(model.reference, [*prompt, *drawn])[len(prompt) - 1 :]
    reference = ReferenceSampler(params, prompt, eos_token_ids=[_EOS], bad_words=bad_words, index=index)
    num_ties = 0
    for at, token in enumerate(drawn):
        scores = reference.scores(logits[at], drawn[:at])
        best = int(scores.argmax())
        if token != best:
            assert scores[best] - scores[token] < _TIE, f"token {at} is {token}, the reference draws {best}"
            num_ties += 1
        assert token not in reference.stop_token_ids or at == len(drawn) - 1
    stopped = drawn[-1] in reference.stop_token_ids
    assert output.finish_reason is (FinishReason.STOP if stopped else FinishReason.LENGTH)
    assert stopped or len(drawn) == params.max_tokens
    return num_ties


@torch.inference_mode()
def _logits(reference: PreTrainedModel, token_ids: list[int]) -> np.ndarray:
    return reference(torch.tensor([token_ids])).logits[0].numpy()
