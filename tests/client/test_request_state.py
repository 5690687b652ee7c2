"""How deltas become outputs, by kind."""

import pytest

from quire import RequestOutput, RequestOutputKind, SamplingParams
from quire.request_state import RequestState, new_request
from quire.v1 import generation_pb2, sampling_pb2

_STOP = generation_pb2.FINISH_REASON_STOP


def _delta(index: int, text: str, *token_ids: int, **more: object) -> generation_pb2.CompletionDelta:
    logprobs = [
        generation_pb2.TokenLogprobs(
            entries=[generation_pb2.TokenLogprob(token_id=token, logprob=-0.5, rank=2, text=str(token))]
        )
        for token in token_ids
    ]
    return generation_pb2.CompletionDelta(
        index=index, text=text, token_ids=token_ids, logprobs=logprobs, **more
    )


_RESPONSES = [
    generation_pb2.GenerateResponse(
        prompt_token_ids=[1, 2], outputs=[_delta(0, "a", 10), _delta(1, "x", 20)]
    ),
    generation_pb2.GenerateResponse(outputs=[_delta(1, "yz", 21, 22, finish_reason=_STOP, stop_string="!")]),
    generation_pb2.GenerateResponse(
        outputs=[_delta(0, "b", 11, finish_reason=_STOP, stop_token_id=11)],
        usage=generation_pb2.Usage(prompt_tokens=2, completion_tokens=5, cached_tokens=1),
    ),
]


def _state(kind: RequestOutputKind) -> RequestState:
    _request, state = new_request(
        "id", "hi", SamplingParams(n=2, logprobs=0, output_kind=kind), model="", priority=0
    )
    return state


def _shown(output: RequestOutput | None) -> list[tuple[int, str, list[int]]]:
    assert output is not None
    return [(each.index, each.text, each.token_ids) for each in output.outputs]


def test_cumulative_outputs_hold_every_sequence_so_far_and_do_not_change_afterwards() -> None:
    state = _state(RequestOutputKind.CUMULATIVE)
    outputs = [state.add(response) for response in _RESPONSES]
    assert [_shown(output) for output in outputs] == [
        [(0, "a", [10]), (1, "x", [20])],
        [(0, "a", [10]), (1, "xyz", [20, 21, 22])],
        [(0, "ab", [10, 11]), (1, "xyz", [20, 21, 22])],
    ]


def test_deltas_hold_what_is_new() -> None:
    state = _state(RequestOutputKind.DELTA)
    outputs = [state.add(response) for response in _RESPONSES]
    assert [_shown(output) for output in outputs] == [
        [(0, "a", [10]), (1, "x", [20])],
        [(1, "yz", [21, 22])],
        [(0, "b", [11])],
    ]
    assert outputs[1] is not None
    assert outputs[1].outputs[0].logprobs is not None
    assert [list(each) for each in outputs[1].outputs[0].logprobs] == [[21], [22]]
    assert outputs[1].outputs[0].cumulative_logprob == pytest.approx(-1.5)


def test_final_only_is_one_output_with_everything() -> None:
    state = _state(RequestOutputKind.FINAL_ONLY)
    *before, last = [state.add(response) for response in _RESPONSES]
    assert before == [None, None]
    assert last is not None
    assert _shown(last) == [(0, "ab", [10, 11]), (1, "xyz", [20, 21, 22])]
    assert (last.finished, last.prompt, last.prompt_token_ids, last.num_cached_tokens) == (
        True,
        "hi",
        [1, 2],
        1,
    )
    first, second = last.outputs
    assert (first.finish_reason, first.stop_reason) == ("stop", 11)
    assert (second.finish_reason, second.stop_reason) == ("stop", "!")
    assert first.cumulative_logprob == pytest.approx(-1.0)
    assert first.logprobs is not None
    assert first.logprobs[1][11].decoded_token == "11"


def test_an_aborted_request_ends_its_living_sequences_only() -> None:
    state = _state(RequestOutputKind.CUMULATIVE)
    for response in _RESPONSES[:2]:
        state.add(response)
    output = state.aborted()
    assert output.finished
    assert [each.finish_reason for each in output.outputs] == ["abort", "stop"]
    assert _shown(output)[0] == (0, "a", [10])


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        (RequestOutputKind.CUMULATIVE, sampling_pb2.REQUEST_OUTPUT_KIND_DELTA),
        (RequestOutputKind.DELTA, sampling_pb2.REQUEST_OUTPUT_KIND_DELTA),
        (RequestOutputKind.FINAL_ONLY, sampling_pb2.REQUEST_OUTPUT_KIND_FINAL_ONLY),
    ],
)
def test_nothing_is_asked_to_be_sent_twice(kind: RequestOutputKind, sent: int) -> None:
    request, _state = new_request("id", "hi", SamplingParams(output_kind=kind), model="", priority=0)
    assert request.sampling_params.output_kind == sent
