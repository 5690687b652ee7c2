"""A seed fixes a text: neighbours, preemptions, block size, budget and pipeline depth never change it."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from quire_scheduler.core import Sampling
from quire_scheduler.core.request import FinishReason
from quire_worker.loading import LoadedModel

from tests.worker.driver import Driver
from tests.worker.tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, load_tiny, make_tiny_model

_SAMPLING = Sampling(max_tokens=64, temperature=0.9, top_k=50, top_p=0.95, min_p=0.01, seed=1234)
_PENALTIES = {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.4}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "llama").directory


@pytest.fixture(scope="module")
def loaded(directory: Path) -> LoadedModel:
    return load_tiny(directory)


def _prompt(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(VOCAB_SIZE) for _ in range(length)]


def _crowd() -> list[tuple[list[int], Sampling]]:
    """The request of interest and 31 neighbours: some greedy, some over the whole vocabulary, some masked or penalised."""
    kinds = [
        _SAMPLING,
        replace(_SAMPLING, temperature=0.0),
        replace(_SAMPLING, temperature=1.3, top_k=0, top_p=1.0, min_p=0.0),
        replace(_SAMPLING, top_k=3, top_p=1.0, min_p=0.0),
        replace(_SAMPLING, **_PENALTIES),
    ]
    neighbours = [
        (_prompt(seed, 20 + 7 * seed), replace(kinds[seed % len(kinds)], seed=seed)) for seed in range(31)
    ]
    return [*neighbours[:15], (_prompt(99, 150), _SAMPLING), *neighbours[15:]]


def _alone(loaded: LoadedModel) -> list[int]:
    return Driver.of(loaded).generate([(_prompt(99, 150), _SAMPLING)])[0].token_ids


def test_sampled_text_is_not_greedy_and_depends_on_the_seed(loaded: LoadedModel) -> None:
    prompt = _prompt(99, 150)
    samplings = [_SAMPLING, replace(_SAMPLING, seed=5), replace(_SAMPLING, temperature=0.0), _SAMPLING]
    first, reseeded, greedy, again = [
        Driver.of(loaded).generate([(prompt, sampling)])[0].token_ids for sampling in samplings
    ]
    assert first == again
    assert first != reseeded
    assert first != greedy


def test_neighbours_do_not_change_a_text(loaded: LoadedModel) -> None:
    assert Driver.of(loaded).generate(_crowd())[15].token_ids == _alone(loaded)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"block_size": 4, "num_gpu_blocks_override": 4096}, {}),
        ({"block_size": 64, "num_gpu_blocks_override": 512}, {}),
        ({"max_num_batched_tokens": 37}, {}),
        ({}, {"pipeline_depth": 1}),
        ({}, {"pipeline_depth": 4}),
    ],
    ids=["block-size-4", "block-size-64", "budget-37", "depth-1", "depth-4"],
)
def test_schedule_does_not_change_any_text(
    directory: Path, loaded: LoadedModel, settings: dict[str, int], options: dict[str, int]
) -> None:
    expected = Driver.of(loaded).generate(_crowd())
    if "max_num_batched_tokens" in settings:
        settings = {**settings, "max_num_seqs": 32}
    outputs = Driver.of(load_tiny(directory, **settings), **options).generate(_crowd())
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]


def test_preemption_does_not_change_any_text(directory: Path, loaded: LoadedModel) -> None:
    expected = Driver.of(loaded).generate(_crowd())
    driver = Driver.of(load_tiny(directory, num_gpu_blocks_override=MAX_MODEL_LEN // 16))
    outputs = driver.generate(_crowd())
    assert driver.stats.num_preemptions >= 10
    assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]


@pytest.mark.parametrize("penalties", [{}, _PENALTIES], ids=["plain", "penalised"])
def test_samples_of_one_request_differ_and_equal_those_resumed_alone(
    loaded: LoadedModel, penalties: dict[str, float]
) -> None:
    prompt, sampling = _prompt(7, 90), replace(_SAMPLING, n=4, **penalties)
    driver = Driver.of(loaded)
    handle = driver.add(prompt, sampling)
    together = driver.run()
    texts = [together[handle, index].token_ids for index in range(4)]
    assert len({tuple(text) for text in texts}) == 4
    assert any(plan.forks for plan in driver.plans), "the samples did not share their prompt"
    assert any(plan.copies for plan in driver.plans), "the shared tail was not copied on write"
    for index, text in enumerate(texts):
        alone = Driver.of(loaded)
        handle = alone.add(prompt, sampling, resumed=((index, []),))
        assert alone.run()[handle, index].token_ids == text


@pytest.mark.parametrize("penalties", [{}, _PENALTIES], ids=["plain", "penalised"])
def test_resumed_text_goes_on_as_it_would_have(loaded: LoadedModel, penalties: dict[str, float]) -> None:
    sampling = replace(_SAMPLING, **penalties)
    whole = Driver.of(loaded).generate([(_prompt(99, 150), sampling)])[0].token_ids
    driver = Driver.of(loaded)
    handle = driver.add(_prompt(99, 150), sampling, resumed=((0, whole[:20]),))
    assert driver.run()[handle, 0].token_ids == whole


def test_penalties_keep_greedy_text_from_repeating_itself_and_its_prompt(loaded: LoadedModel) -> None:
    greedy, prompt = replace(_SAMPLING, temperature=0.0), _prompt(3, 30)
    samplings = [
        greedy,
        replace(greedy, presence_penalty=2.0),
        replace(greedy, frequency_penalty=2.0),
        # What was seen falls to zero or far below; the likeliest of the others stays above.
        replace(greedy, repetition_penalty=1e6),
    ]
    plain, present, frequent, repeated = [
        Driver.of(loaded).generate([(prompt, sampling)])[0].token_ids for sampling in samplings
    ]
    assert len(set(plain)) < 60
    assert len(set(present)) == len(set(frequent)) == len(set(repeated)) == 64
    assert set(present) & set(prompt), "only the repetition penalty counts the prompt"
    assert not set(repeated) & set(prompt)


@pytest.mark.parametrize("pipeline_depth", [1, 2, 4])
def test_stop_token_ends_a_text(loaded: LoadedModel, pipeline_depth: int) -> None:
    whole = _alone(loaded)
    stop = next(token for at, token in enumerate(whole) if at >= 10 and token not in whole[:at])
    sampling = replace(_SAMPLING, stop_token_ids=(stop,))
    output = Driver.of(loaded, pipeline_depth=pipeline_depth).generate([(_prompt(99, 150), sampling)])[0]
    assert output.token_ids == whole[: whole.index(stop) + 1]
    assert (output.finish_reason, output.stop_token_id) == (FinishReason.STOP, stop)


def test_stop_tokens_cannot_be_drawn_before_min_tokens(loaded: LoadedModel) -> None:
    every_other = tuple(range(0, VOCAB_SIZE, 2))
    sampling = replace(_SAMPLING, stop_token_ids=every_other, min_tokens=12, top_k=0, top_p=1.0, min_p=0.0)
    output = Driver.of(loaded).generate([(_prompt(3, 30), sampling)])[0]
    assert output.finish_reason is FinishReason.STOP
    assert len(output.token_ids) > 12
    assert all(token % 2 for token in output.token_ids[:-1])
    assert output.token_ids[-1] % 2 == 0


def test_stop_token_outside_of_the_vocabulary_is_never_met(loaded: LoadedModel) -> None:
    sampling = replace(_SAMPLING, stop_token_ids=(VOCAB_SIZE + 5,), min_tokens=8)
    output = Driver.of(loaded).generate([(_prompt(99, 150), sampling)])[0]
    assert output.token_ids == _alone(loaded)


def test_context_length_ends_a_text(loaded: LoadedModel) -> None:
    sampling = replace(_SAMPLING, max_tokens=5)
    output = Driver.of(loaded).generate([(_prompt(1, MAX_MODEL_LEN - 5), sampling)])[0]
    assert len(output.token_ids) == 5
    assert output.finish_reason is FinishReason.LENGTH
