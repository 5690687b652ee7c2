"""A client's parameters of a beam search: what is refused by name, what survives the wire, and what becomes of them."""

from typing import Any

import pytest

from quire.beam_search_params import BeamSearchParams
from quire.errors import InvalidRequest
from quire.v1 import beam_search_pb2

_SIZES: dict[str, Any] = {
    "prompt_len": 3, "max_model_len": 10, "max_num_seqs": 8, "vocab_size": 50, "eos_token_ids": (1, 2),
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beam_width", 0),
        ("beam_width", 2.5),
        ("beam_width", True),
        ("max_tokens", 0),
        ("max_tokens", "9"),
        ("temperature", -0.5),
        ("temperature", float("inf")),
        ("length_penalty", float("nan")),
        ("length_penalty", None),
        ("length_penalty", 10.5),
        ("length_penalty", -1e9),
        ("early_stopping", "always"),
        ("ignore_eos", 1),
        ("include_stop_str_in_output", "yes"),
    ],
)
def test_value_that_breaks_a_rule_is_named(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        BeamSearchParams(**({"beam_width": 2} | {field: value}))
    assert refused.value.field == field
    assert f"{field}={value}" in refused.value.message.replace("'", "")


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
def test_parameters_survive_the_wire(early_stopping: Any) -> None:
    params = BeamSearchParams(
        beam_width=3,
        max_tokens=7,
        ignore_eos=True,
        temperature=0.5,
        length_penalty=-1.5,
        include_stop_str_in_output=True,
        early_stopping=early_stopping,
    )
    assert BeamSearchParams.from_proto(params.to_proto()) == params


def test_unset_fields_take_defaults() -> None:
    message = beam_search_pb2.BeamSearchParams(beam_width=3)
    assert BeamSearchParams.from_proto(message) == BeamSearchParams(beam_width=3)


def test_context_caps_max_tokens() -> None:
    assert BeamSearchParams(beam_width=2).resolve(**_SIZES).max_tokens == 7
    assert BeamSearchParams(beam_width=2, max_tokens=50).resolve(**_SIZES).max_tokens == 7
    assert BeamSearchParams(beam_width=2, max_tokens=4).resolve(**_SIZES).max_tokens == 4


def test_temperature_counts_as_in_sampling() -> None:
    assert BeamSearchParams(beam_width=2, temperature=1e-30).resolve(**_SIZES).temperature == 0.01
    assert BeamSearchParams(beam_width=2).resolve(**_SIZES).temperature == 0.0


@pytest.mark.parametrize(
    ("width", "sizes", "rule"),
    [(9, {}, "max_num_seqs=8"), (8, {"vocab_size": 23}, "at most 7 for a vocabulary of 23 with 2")],
)
def test_width_is_bounded_by_what_serves_it(width: int, sizes: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidRequest, match=rule) as refused:
        BeamSearchParams(beam_width=width).resolve(**(_SIZES | sizes))
    assert refused.value.field == "beam_width"
