"""A client's sampling parameters: what is refused by name, and what an unset field becomes."""

from typing import Any

import pytest

from quire.errors import InvalidRequest
from quire.sampling_params import ModelDefaults, SamplingParams
from quire.v1 import sampling_pb2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("inf")),
    ],
)
def test_penalties_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    values: dict[str, Any] = {field: value}
    with pytest.raises(InvalidRequest, match=f"{field}=.*must be") as refused:
        SamplingParams.from_proto(sampling_pb2.SamplingParams(**values))
    assert refused.value.field == field


def test_penalties_survive_the_message_and_take_the_models_default() -> None:
    params = SamplingParams(presence_penalty=-0.5, frequency_penalty=2.0)
    assert SamplingParams.from_proto(params.to_proto()) == params
    defaults = ModelDefaults.from_generation_config({"repetition_penalty": 1.25, "top_k": 20})
    sizes = {"prompt_len": 3, "max_model_len": 10, "vocab_size": 50, "drawn_seed": 1}
    assert params.resolve(defaults, **sizes).repetition_penalty == 1.25
    assert params.resolve(ModelDefaults(), **sizes).repetition_penalty == 1.0
    chosen = SamplingParams(repetition_penalty=0.5).resolve(defaults, **sizes)
    assert (chosen.repetition_penalty, chosen.presence_penalty, chosen.frequency_penalty) == (0.5, 0.0, 0.0)
