"""Beam search finds the beams and scores of transformers, whatever the schedule did to it, and shares its blocks.

All requests of a case run in one batch: several prompts, widths, length penalties and ways to stop early at once.
"""

import random
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product

import pytest
import torch
from quire_scheduler.core import BeamParams, FinishReason, Sampling
from quire_scheduler.core.beam_search import EarlyStopping
from quire_worker.loading import LoadedModel

from tests.worker.driver import Driver, Output
from tests.worker.tiny_model import VOCAB_SIZE, TinyModel, load_tiny, make_tiny_model

_WIDTHS = (2, 4, 8)
_LENGTH_PENALTIES = (0.0, 0.6, 1.0, 2.0)
_EARLY_STOPPING: tuple[EarlyStopping, ...] = (False, True, "never")
_PROMPT_LENS = (5, 90)
_MAX_TOKENS = 24
_EOS = (1, 7)
_TIE = 1e-5
_TOLERANCE = 1e-4
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class Case:
    """One search."""

    prompt: tuple[int, ...]
    params: BeamParams
    eos: tuple[int, ...]


Beams = list[tuple[list[int], float]]
"""(tokens, score), best first."""


@dataclass
class Tally:
    """What all comparisons together have shown."""

    num_beams: int = 0
    num_ties: int = 0
    num_stopped: int = 0
    worst_error: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = (
            f"beam search: {self.num_beams} beams, of which {self.num_stopped} ended by themselves and {self.num_ties} "
            f"were ties, scores within {self.worst_error:.1e}"
        )
        return "\n".join([figures, *self.notes])


@pytest.fixture(scope="module")
def tally(pytestconfig: pytest.Config) -> Iterator[Tally]:
    """Is printed when the last case has ended, captured output or not."""
    tally = Tally()
    yield tally
    capture = pytestconfig.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\n{tally}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A model whose ends of sequence are likely enough for beams to meet them."""
    tiny = make_tiny_model(tmp_path_factory.mktemp("beams"), "qwen3", seed=3)
    with torch.no_grad():
        tiny.reference.lm_head.weight[list(_EOS)] *= 1.5
    tiny.reference.save_pretrained(tiny.directory)
    return tiny


@pytest.fixture(scope="module")
def loaded(tiny: TinyModel) -> LoadedModel:
    return load_tiny(tiny.directory, max_num_batched_tokens=64, num_gpu_blocks_override=512)


@pytest.fixture(scope="module")
def tight(tiny: TinyModel) -> LoadedModel:
    """The same with few blocks: eight beams of the longest prompt just fit."""
    return load_tiny(tiny.directory, max_num_batched_tokens=64, max_model_len=256, num_gpu_blocks_override=24)


@pytest.fixture(scope="module")
def expected(tiny: TinyModel) -> dict[Case, Beams]:
    """What transformers finds."""
    return {case: _reference_beams(tiny, case) for case in _cases()}


def test_beams_and_scores_are_those_of_transformers(
    loaded: LoadedModel, expected: dict[Case, Beams], tally: Tally
) -> None:
    driver = Driver.of(loaded)
    _compare(driver, expected, tally)
    assert tally.num_stopped > tally.num_beams // 10, "hardly a beam has ended by itself"
    assert tally.num_stopped < tally.num_beams, "no beam has reached max_tokens"
    assert max(plan.num_tokens for plan in driver.plans) <= 64 < max(_PROMPT_LENS), "prefill was not chunked"


def test_preempted_search_finds_the_same_beams(
    tight: LoadedModel, expected: dict[Case, Beams], tally: Tally
) -> None:
    driver = Driver.of(tight)
    _compare(driver, expected, tally)
    assert driver.stats.num_preemptions > 0
    tally.notes.append(
        f"with {driver.stats.num_total_blocks} blocks: {driver.stats.num_preemptions} preemptions"
    )


@pytest.mark.parametrize("width", [4, 8])
def test_beams_share_their_blocks(loaded: LoadedModel, width: int, tally: Tally) -> None:
    driver = Driver.of(loaded)
    prompt = _prompt(512)
    outputs = _search(driver, [Case(prompt, BeamParams(beam_width=width), ())], max_tokens=128)
    assert [len(output.token_ids) for output in outputs[0]] == [128] * width
    unshared = width * -(-(512 + 128) // _BLOCK_SIZE)
    tally.notes.append(
        f"{width} beams of 512 + 128 tokens: {driver.peak_used_blocks} blocks, unshared {unshared}"
    )
    assert 2 * driver.peak_used_blocks < unshared


def test_temperature_flattens_what_the_beams_are_scored_by(tiny: TinyModel, loaded: LoadedModel) -> None:
    case = Case(_prompt(20), BeamParams(beam_width=3), ())
    cold, hot = (_search(Driver.of(loaded), [case], temperature=each)[0] for each in (1.0, 2.0))
    best = hot[0]
    tokens = torch.tensor([[*case.prompt, *best.token_ids]])
    with torch.inference_mode():
        logits = tiny.reference(tokens).logits[0, len(case.prompt) - 1 : -1].float()
    logprobs = (logits / 2.0).log_softmax(dim=1).gather(1, torch.tensor(best.token_ids).unsqueeze(1))
    assert best.cumulative_logprob == pytest.approx(float(logprobs.sum()), abs=_TOLERANCE)
    assert cold[0].cumulative_logprob != pytest.approx(best.cumulative_logprob, abs=0.1)


def test_requests_beside_a_search_draw_what_they_draw_alone(loaded: LoadedModel) -> None:
    sampling = Sampling(max_tokens=40, n=2, seed=11)
    alone = Driver.of(loaded)
    handle = alone.add(list(_prompt(40)), sampling)
    want = [alone.run()[handle, index].token_ids for index in range(2)]
    beside = Driver.of(loaded)
    params = BeamParams(beam_width=4)
    search = beside.add(list(_prompt(30)), _sampling(params, (), 40), beam_params=params)
    handle = beside.add(list(_prompt(40)), sampling)
    outputs = beside.run()
    assert [outputs[handle, index].token_ids for index in range(2)] == want
    assert all(len(outputs[search, index].token_ids) == 40 for index in range(4))


def _cases() -> list[Case]:
    return [
        Case(
            _prompt(prompt_len),
            BeamParams(beam_width=width, length_penalty=penalty, early_stopping=early_stopping),
            _EOS[:num_eos],
        )
        for width, penalty, early_stopping, (prompt_len, num_eos) in product(
            _WIDTHS, _LENGTH_PENALTIES, _EARLY_STOPPING, zip(_PROMPT_LENS, (1, 2), strict=True)
        )
    ]


def _prompt(length: int) -> tuple[int, ...]:
    draw = random.Random(length)
    return tuple(draw.randrange(VOCAB_SIZE) for _ in range(length))


def _sampling(
    params: BeamParams, eos: tuple[int, ...], max_tokens: int, temperature: float = 1.0
) -> Sampling:
    return Sampling(
        n=params.beam_width,
        max_tokens=max_tokens,
        temperature=temperature,
        stop_token_ids=eos,
        eos_token_ids=frozenset(eos),
    )


def _search(
    driver: Driver, cases: list[Case], *, max_tokens: int = _MAX_TOKENS, temperature: float = 1.0
) -> list[list[Output]]:
    """The beams of each case, all run together."""
    handles = [
        driver.add(
            list(case.prompt),
            _sampling(case.params, case.eos, max_tokens, temperature),
            beam_params=case.params,
        )
        for case in cases
    ]
    outputs = driver.run()
    return [
        [outputs[handle, index] for index in range(case.params.beam_width)]
        for handle, case in zip(handles, cases, strict=True)
    ]


def _compare(driver: Driver, expected: dict[Case, Beams], tally: Tally) -> None:
    num_ties = num_beams = 0
    for (case, wanted), beams in zip(expected.items(), _search(driver, list(expected)), strict=True):
        for (tokens, score), beam in zip(wanted, beams, strict=True):
            assert beam.score is not None
            error = abs(beam.score - score)
            if beam.token_ids != tokens:
                assert error < _TIE, (
                    f"{case.params}: {beam.token_ids} at {beam.score}, not {tokens} at {score}"
                )
                num_ties += 1
            assert error < _TOLERANCE, f"{case.params}: score {beam.score} instead of {score}"
            ended = beam.token_ids[-1] in case.eos
            assert beam.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)
            assert ended or len(beam.token_ids) == _MAX_TOKENS
            tally.worst_error = max(tally.worst_error, error)
            tally.num_stopped += ended
            num_beams += 1
    assert num_ties * 100 <= num_beams
    tally.num_ties += num_ties
    tally.num_beams += num_beams


@torch.inference_mode()
def _reference_beams(tiny: TinyModel, case: Case) -> Beams:
    prompt = torch.tensor([case.prompt])
    found = tiny.reference.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        num_beams=case.params.beam_width,
        num_return_sequences=case.params.beam_width,
        do_sample=False,
        max_new_tokens=_MAX_TOKENS,
        length_penalty=case.params.length_penalty,
        early_stopping=case.params.early_stopping,
        eos_token_id=list(case.eos),
        pad_token_id=case.eos[0],
        return_dict_in_generate=True,
        output_scores=True,
    )
    rows = found.sequences[:, len(case.prompt) :].tolist()
    return [
        (_until_end(tokens, case.eos), score)
        for tokens, score in zip(rows, found.sequences_scores.tolist(), strict=True)
    ]


def _until_end(tokens: list[int], eos: tuple[int, ...]) -> list[int]:
    """Without the padding behind an end of sequence."""
    ends = [at for at, token in enumerate(tokens) if token in eos]
    return tokens[: ends[0] + 1] if ends else tokens
