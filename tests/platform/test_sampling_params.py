"""A client's sampling parameters: what is refused by name, and what an unset field becomes."""

import copy
import dataclasses
from typing import Any

import pytest

from quire.errors import InvalidRequest
from quire.sampling_params import ModelDefaults, RequestOutputKind, SamplingParams
from quire.structured_outputs import StructuredOutputsParams
from quire.v1 import sampling_pb2

_SIZES: dict[str, int] = {"prompt_len": 3, "max_model_len": 10, "vocab_size": 50, "drawn_seed": 1}

_EVERYTHING = SamplingParams(
    n=2,
    temperature=0.5,
    top_p=0.75,
    top_k=7,
    min_p=0.125,
    seed=5,
    presence_penalty=-0.5,
    frequency_penalty=2.0,
    repetition_penalty=1.25,
    max_tokens=9,
    min_tokens=3,
    stop=["a", "b"],
    stop_token_ids=[4, 5],
    include_stop_str_in_output=True,
    ignore_eos=True,
    bad_words=["worse", "worst"],
    logit_bias={3: -1.5},
    allowed_token_ids=[1, 2, 3],
    logprobs=0,
    prompt_logprobs=2,
    detokenize=True,
    skip_special_tokens=False,
    spaces_between_special_tokens=False,
    truncate_prompt_tokens=-1,
    output_kind=RequestOutputKind.FINAL_ONLY,
    structured_outputs=StructuredOutputsParams(choice=["yes", "no"]),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("inf")),
        ("max_tokens", 0),
        ("min_tokens", 17),
        ("stop", [""]),
        ("stop_token_ids", list(range(257))),
        ("bad_words", [" "]),
        ("bad_words", ["x"] * 65),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", {1: float("inf")}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
        ("logprobs", 21),
        ("prompt_logprobs", 21),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
    ],
)
def test_values_out_of_range_are_refused_by_name(field: str, value: object) -> None:
    values: dict[str, Any] = {"max_tokens": 16, field: value}
    with pytest.raises(InvalidRequest, match=f"^{field}=.+: ") as refused:
        SamplingParams.from_proto(sampling_pb2.SamplingParams(**values))
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_k", 1.5),
        ("n", True),
        ("temperature", "hot"),
        ("detokenize", 1),
        ("logprobs", -1),
        ("stop", [3]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["a"]),
        ("allowed_token_ids", []),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {1: "a"}),
    ],
)
def test_values_that_only_python_can_hold_are_refused_by_name_too(field: str, value: object) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(InvalidRequest, match=f"^{field}=.+: ") as refused:
        SamplingParams(**values)
    assert refused.value.field == field


def test_every_field_survives_the_message() -> None:
    assert SamplingParams.from_proto(_EVERYTHING.to_proto()) == _EVERYTHING
    unlike_default = [
        each.name
        for each in dataclasses.fields(SamplingParams)
        if getattr(_EVERYTHING, each.name) == getattr(SamplingParams(), each.name)
    ]
    assert unlike_default == ["detokenize"], "stop needs it, so this one cannot differ here"
    silent = SamplingParams(detokenize=False)
    assert SamplingParams.from_proto(silent.to_proto()) == silent
    assert copy.deepcopy(_EVERYTHING) == _EVERYTHING


def test_every_field_of_the_message_is_a_field_of_the_class() -> None:
    in_message = {field.name for field in sampling_pb2.SamplingParams.DESCRIPTOR.fields}
    assert in_message == {each.name for each in dataclasses.fields(SamplingParams)}


def test_the_class_has_the_fields_defaults_where_the_message_asks_for_the_models() -> None:
    defaults = ModelDefaults.from_generation_config(
        {"temperature": 0.6, "repetition_penalty": 1.25, "top_k": 20}
    )
    unset = SamplingParams.from_proto(sampling_pb2.SamplingParams()).resolve(defaults, **_SIZES)
    assert (unset.temperature, unset.top_k, unset.repetition_penalty) == (0.6, 20, 1.25)
    assert (unset.max_tokens, unset.seed, unset.output_kind) == (7, 1, RequestOutputKind.DELTA)
    made = SamplingParams().resolve(defaults, **_SIZES)
    assert (made.temperature, made.top_k, made.repetition_penalty) == (1.0, 0, 1.0)
    assert (made.max_tokens, made.output_kind) == (7, RequestOutputKind.CUMULATIVE)


def test_conveniences_become_one_form() -> None:
    loose: dict[str, Any] = {"temperature": 1, "stop_token_ids": None, "logit_bias": {"7": 1000}, "seed": -1}
    params = SamplingParams(stop="x", **loose)
    assert (params.stop, params.stop_token_ids, params.logit_bias, params.seed) == (
        ("x",),
        (),
        {7: 100.0},
        None,
    )


def test_a_temperature_too_small_to_hear_the_noise_is_raised_and_zero_stays_greedy() -> None:
    assert SamplingParams(temperature=1e-30).resolve(ModelDefaults(), **_SIZES).temperature == 0.01
    assert SamplingParams(temperature=0).resolve(ModelDefaults(), **_SIZES).temperature == 0.0


@pytest.mark.parametrize("field", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_tokens_outside_the_vocabulary_are_refused_by_name(field: str) -> None:
    values: dict[str, Any] = {field: {50: 1.0} if field == "logit_bias" else [50]}
    with pytest.raises(InvalidRequest, match=f"^{field}=50: must be below the vocabulary size 50"):
        SamplingParams(**values).resolve(ModelDefaults(), **_SIZES)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"json_object": False},
        {"regex": "a", "json": "{}"},
        {"choice": []},
        {"choice": [""]},
        {"grammar": ""},
    ],
)
def test_a_structured_output_has_exactly_one_constraint(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=r"^structured_outputs.*: ") as refused:
        StructuredOutputsParams(**values)
    assert refused.value.field == "structured_outputs"


def test_a_schema_is_kept_as_text() -> None:
    schema = StructuredOutputsParams(json={"type": "object"})
    assert (schema.json, schema.constraint) == ('{"type": "object"}', "json")
    assert StructuredOutputsParams.from_proto(schema.to_proto()) == schema
