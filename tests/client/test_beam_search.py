"""Beam search through both Python doors. What beams it finds is tested beside the engine."""

import math

import pytest

from quire import LLM, AsyncEngineArgs, AsyncLLMEngine, BeamSearchParams, SamplingParams
from quire.errors import InvalidRequest

_PROMPTS = ["ROMEO:\n", "JULIET:\n"]


def test_beams_come_best_first_with_prompt_text_and_scores(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=4, max_tokens=10, length_penalty=0.5)
    outputs = llm.beam_search(_PROMPTS, params)
    for prompt, output in zip(_PROMPTS, outputs, strict=True):
        prompt_ids = llm.get_tokenizer().encode(prompt)
        assert len({tuple(beam.tokens) for beam in output.sequences}) == 4
        scores = [beam.score for beam in output.sequences]
        assert scores == sorted(scores, reverse=True)
        for beam in output.sequences:
            assert beam.tokens[: len(prompt_ids)] == prompt_ids
            num_tokens = len(beam.tokens) - len(prompt_ids)
            assert 0 < num_tokens <= 10
            assert beam.score == pytest.approx(beam.cum_logprob / math.sqrt(num_tokens), rel=1e-5)
            assert beam.text == llm.get_tokenizer().decode(beam.tokens)
            assert beam.text.startswith(prompt)


def test_one_beam_is_the_greedy_text_and_has_its_logprob(llm: LLM) -> None:
    (found,) = llm.beam_search("ROMEO:\n", BeamSearchParams(beam_width=1, max_tokens=12, ignore_eos=True))
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0)
    (drawn,) = llm.generate("ROMEO:\n", greedy, use_tqdm=False)
    (beam,) = found.sequences
    assert beam.tokens[-12:] == drawn.outputs[0].token_ids
    assert beam.cum_logprob == pytest.approx(drawn.outputs[0].cumulative_logprob, abs=1e-4)


async def test_the_asynchronous_door_finds_the_same_beams(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=8)
    (found,) = llm.beam_search("ROMEO:\n", params)
    async with AsyncLLMEngine.from_engine_args(AsyncEngineArgs(address=llm.address)) as engine:
        output = await engine.beam_search("ROMEO:\n", params)
    assert output.finished
    assert [each.token_ids for each in output.outputs] == [
        beam.tokens[len(output.prompt_token_ids or ()) :] for beam in found.sequences
    ]
    assert [each.score for each in output.outputs] == [beam.score for beam in found.sequences]


def test_a_wrong_parameter_is_refused_by_name(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as refused:
        llm.beam_search("ROMEO:\n", BeamSearchParams(beam_width=10**6, max_tokens=2))
    assert refused.value.field == "beam_width"
