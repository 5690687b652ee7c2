"""Structured output through scheduler core and worker: what is drawn satisfies its constraint, whatever happens on the way."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from quire_scheduler.core import Sampling
from quire_scheduler.core.request import FinishReason
from quire_worker.loading import LoadedModel
from tokenizers import Tokenizer

from quire.assets import shipped_model_path
from quire.structured_outputs import StructuredOutputsParams
from tests.worker.driver import Driver, Output
from tests.worker.tiny_model import load_tiny, make_tiny_model

SHIPPED = Path(shipped_model_path())
EOS = (0, 2)
PROMPT = [40, 50, 60, 70, 80]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "address": {
            "anyOf": [
                {"type": "null"},
                {
                    "type": "object",
                    "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"}},
                    "required": ["city"],
                    "additionalProperties": False,
                },
            ]
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
LIST_GRAMMAR = 'start: "[" item ("," item)? "]"\nitem: /[a-z]{1,3}/ | start'
EBNF = 'root ::= "<" word ("-" word)? ">"\nword ::= [a-z] [a-z]?'


@pytest.fixture(scope="module")
def text_of() -> Any:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).decode


@pytest.fixture(scope="module")
def shipped() -> LoadedModel:
    return load_tiny(SHIPPED)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("untrained")
    make_tiny_model(directory, vocab_size=1024, eos_token_id=list(EOS))
    shutil.copy(SHIPPED / "tokenizer.json", directory)
    return load_tiny(directory)


@pytest.fixture(params=["shipped", "untrained"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    return request.getfixturevalue(request.param)


def constrained(seed: int = 0, *, max_tokens: int = 300, **constraint: Any) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        seed=seed,
        stop_token_ids=EOS,
        eos_token_ids=frozenset(EOS),
        grammar=StructuredOutputsParams(**constraint).to_proto().SerializeToString(),
    )


def finished_texts(outputs: list[Output], text_of: Any) -> list[str]:
    texts = [text_of(out.token_ids) for out in outputs if out.finish_reason is FinishReason.STOP]
    assert len(texts) >= len(outputs) / 3, "most answers are cut off: nothing is shown"
    return texts


def test_json_parses_and_satisfies_its_schema(model: LoadedModel, text_of: Any) -> None:
    outputs = Driver.of(model).generate([(PROMPT, constrained(seed, json=SCHEMA)) for seed in range(40)])
    texts = finished_texts(outputs, text_of)
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len(set(texts)) > len(texts) / 2


def test_any_json_object(model: LoadedModel, text_of: Any) -> None:
    outputs = Driver.of(model).generate([(PROMPT, constrained(seed, json_object=True)) for seed in range(30)])
    for text in finished_texts(outputs, text_of):
        assert isinstance(json.loads(text), dict)


def test_a_regular_expression_matches_the_whole_text(model: LoadedModel, text_of: Any) -> None:
    pattern = r"(yes|no): [A-Z]{2,5}-\d{3}(\.[a-f]+)?"
    outputs = Driver.of(model).generate([(PROMPT, constrained(seed, regex=pattern)) for seed in range(30)])
    for text in finished_texts(outputs, text_of):
        assert re.fullmatch(pattern, text), text


def test_one_of_several_texts(model: LoadedModel, text_of: Any) -> None:
    choice = ["yes", "yes, but", 'a "quoted" \\ text\n', "é😀"]
    outputs = Driver.of(model).generate([(PROMPT, constrained(seed, choice=choice)) for seed in range(40)])
    drawn = {text_of(out.token_ids) for out in outputs}
    assert drawn <= set(choice)
    assert len(drawn) > 1


@pytest.mark.parametrize(
    ("grammar", "shape"),
    [(LIST_GRAMMAR, r"\[[\[\],a-z]+\]"), (EBNF, r"<[a-z]{1,2}(-[a-z]{1,2})?>")],
    ids=["lark", "ebnf"],
)
def test_a_grammar_produces_the_text(model: LoadedModel, text_of: Any, grammar: str, shape: str) -> None:
    outputs = Driver.of(model).generate([(PROMPT, constrained(seed, grammar=grammar)) for seed in range(30)])
    for text in finished_texts(outputs, text_of):
        assert re.fullmatch(shape, text), text
        assert text.count("[") == text.count("]")


def mixed_requests() -> list[tuple[list[int], Sampling]]:
    free = replace(constrained(json_object=True), grammar=b"")
    sampled = [(PROMPT, constrained(seed, json=SCHEMA, max_tokens=120)) for seed in range(8)]
    return [*sampled, *(([*PROMPT, seed + 90], replace(free, seed=seed, max_tokens=90)) for seed in range(8))]


def token_ids(outputs: list[Output]) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_steps_in_flight_change_nothing(untrained: LoadedModel, depth: int) -> None:
    together = Driver.of(untrained, pipeline_depth=depth).generate(mixed_requests())
    alone = [
        Driver.of(untrained, pipeline_depth=1).generate([request])[0].token_ids
        for request in mixed_requests()
    ]
    assert token_ids(together) == alone


def test_a_preempted_request_goes_on_as_it_would_have(untrained: LoadedModel) -> None:
    expected = token_ids(Driver.of(untrained).generate(mixed_requests()))
    capacity = type(untrained.capacity)()
    capacity.CopyFrom(untrained.capacity)
    capacity.num_blocks = 48
    driver = Driver(untrained.runner, capacity, untrained.spec)
    assert token_ids(driver.generate(mixed_requests())) == expected
    assert driver.stats.num_preemptions > 2


@pytest.mark.parametrize("num_steps", [1, 2, 7, 30])
def test_a_lost_worker_changes_no_text(untrained: LoadedModel, num_steps: int) -> None:
    expected = token_ids(Driver.of(untrained).generate(mixed_requests()))
    driver = Driver.of(untrained)
    handles = [driver.add(prompt, sampling) for prompt, sampling in mixed_requests()]
    driver.run(num_steps=num_steps)
    driver.lose_worker()
    outputs = driver.run()
    assert [outputs[handle, 0].token_ids for handle in handles] == expected


def test_every_sequence_of_a_request_follows_its_own_grammar(untrained: LoadedModel, text_of: Any) -> None:
    driver = Driver.of(untrained)
    handle = driver.add(PROMPT, replace(constrained(json=SCHEMA), n=4))
    outputs = driver.run()
    texts = finished_texts([outputs[handle, index] for index in range(4)], text_of)
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)
    assert len({tuple(output.token_ids) for output in outputs.values()}) == 4


def test_a_bad_grammar_ends_its_own_request_alone(untrained: LoadedModel) -> None:
    expected = token_ids(Driver.of(untrained).generate(mixed_requests()))
    driver = Driver.of(untrained)
    good = [driver.add(prompt, sampling) for prompt, sampling in mixed_requests()]
    bad = {
        driver.add(PROMPT, replace(constrained(regex="(a"), n=2)): "unclosed group",
        driver.add(PROMPT, constrained(json={"type": "nothing"})): "Invalid type: nothing",
        driver.add(PROMPT, replace(constrained(regex="a"), grammar=b"\xff\xff")): "structured_outputs",
        driver.add(PROMPT, constrained(regex="(a?){2000}a{2000}")): "too many expressions",
    }
    outputs = driver.run(may_fail=True)
    assert [outputs[handle, 0].token_ids for handle in good] == expected
    assert driver.failures.keys() == bad.keys()
    for handle, reason in bad.items():
        failure = driver.failures[handle]
        assert reason in failure.message
        assert (failure.code, failure.field) == (3, "structured_outputs")
    assert driver.stats.num_used_blocks == 0


def test_a_model_without_a_tokenizer_refuses_structured_requests_alone(tmp_path: Path) -> None:
    make_tiny_model(tmp_path, vocab_size=1024, eos_token_id=list(EOS))
    driver = Driver.of(load_tiny(tmp_path))
    good = driver.add(PROMPT, Sampling(max_tokens=20))
    bad = driver.add(PROMPT, constrained(json=SCHEMA))
    outputs = driver.run(may_fail=True)
    assert len(outputs[good, 0].token_ids) == 20
    assert "no tokenizer.json" in driver.failures[bad].message


def test_an_ended_grammar_ends_the_text_though_its_least_length_is_not_reached(
    untrained: LoadedModel, text_of: Any
) -> None:
    sampling = replace(constrained(choice=["yes", "no"]), min_tokens=20)
    output = Driver.of(untrained).generate([(PROMPT, sampling)])[0]
    assert text_of(output.token_ids) in ("yes", "no")
    assert output.finish_reason is FinishReason.STOP


def test_a_grammar_that_could_end_goes_on_until_its_least_length(
    untrained: LoadedModel, text_of: Any
) -> None:
    sampling = replace(constrained(regex="[a-z]*"), min_tokens=20, max_tokens=40)
    for output in Driver.of(untrained).generate([(PROMPT, replace(sampling, seed=s)) for s in range(8)]):
        assert len(output.token_ids) > 20
        assert re.fullmatch("[a-z]*", text_of(output.token_ids))


def test_after_its_end_a_text_that_ignores_ends_has_nothing_but_them(
    untrained: LoadedModel, text_of: Any
) -> None:
    sampling = replace(constrained(regex="ab"), stop_token_ids=(), eos_token_ids=frozenset(), max_tokens=12)
    output = Driver.of(untrained).generate([(PROMPT, sampling)])[0]
    assert output.finish_reason is FinishReason.LENGTH
    assert text_of(output.token_ids) == "ab"
    assert set(output.token_ids[2:]) <= set(EOS)


def test_logprobs_are_those_of_the_logits_before_the_mask(untrained: LoadedModel) -> None:
    free = replace(constrained(regex="a"), grammar=b"", num_logprobs=3, max_tokens=1)
    bound = replace(free, grammar=constrained(regex="[a-z]{50}").grammar)
    of_free, of_bound = Driver.of(untrained).generate([(PROMPT, free), (PROMPT, bound)])
    top = dict(sorted(of_free.logprobs[0].items(), key=lambda item: -item[1])[:3])
    assert top.items() <= of_bound.logprobs[0].items()
    assert of_bound.token_ids[0] in of_bound.logprobs[0]


def test_penalties_and_other_masks_act_on_what_the_grammar_leaves(
    untrained: LoadedModel, text_of: Any
) -> None:
    sampling = replace(constrained(regex="[ab]{60}"), temperature=0.7, top_k=5, frequency_penalty=2.0)
    text = text_of(Driver.of(untrained).generate([(PROMPT, sampling)])[0].token_ids)
    assert re.fullmatch("[ab]{60}", text)


def test_an_end_of_sequence_that_is_an_ordinary_word_ends_and_is_no_text(
    tmp_path: Path, text_of: Any
) -> None:
    word = Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).token_to_id("Ġthe")
    make_tiny_model(tmp_path, vocab_size=1024, eos_token_id=[word])
    shutil.copy(SHIPPED / "tokenizer.json", tmp_path)
    bound = [replace(constrained(seed, json=SCHEMA), stop_token_ids=(word,)) for seed in range(20)]
    outputs = Driver.of(load_tiny(tmp_path)).generate([(PROMPT, sampling) for sampling in bound])
    for output in outputs:
        if output.finish_reason is FinishReason.STOP:
            assert output.token_ids[-1] == word
            jsonschema.validate(json.loads(text_of(output.token_ids[:-1])), SCHEMA)


def test_a_grammar_none_of_whose_tokens_is_allowed_ends_its_own_request_alone(shipped: LoadedModel) -> None:
    driver = Driver.of(shipped)
    good = driver.add(PROMPT, constrained(regex="a{3}"))
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    bad = driver.add(
        PROMPT, replace(constrained(regex="a{3}"), allowed_token_ids=tuple(tokenizer.encode("b").ids))
    )
    outputs = driver.run(may_fail=True)
    assert tokenizer.decode(outputs[good, 0].token_ids) == "aaa"
    assert driver.failures.keys() == {bad}
    assert driver.failures[bad].field == "structured_outputs"
    assert driver.failures[bad].message.startswith("structured_outputs: no token is left to draw: ")
