"""A request's stream: stop strings that span tokens, stop tokens that are not shown, and what a scheduler is told again."""

import asyncio
from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire_tokenizer import stream as stream_module
from quire_tokenizer.stream import LENGTH, STOP, RequestStream
from quire_tokenizer.text_codec import TextCodec

from quire.sampling_params import SamplingParams
from tests.tokenizer.families import byte_fallback, byte_level

_EOS = 0


@cache
def _codec(family: str = "byte-level") -> TextCodec:
    return TextCodec(byte_level() if family == "byte-level" else byte_fallback())


def _ids(text: str, family: str = "byte-level") -> list[int]:
    (token_ids,) = _codec(family).encode_batch([text], add_special_tokens=False)
    return token_ids


def _stream(family: str = "byte-level", deadline_ms: int = 0, **params: object) -> RequestStream:
    return RequestStream(
        request_id="one",
        tenant="",
        prompt_token_ids=[1],
        params=SamplingParams(max_tokens=1000, **params),  # pyright: ignore[reportArgumentType]
        priority=0,
        codec=_codec(family),
        eos_token_ids=[_EOS],
        deadline_ms=deadline_ms,
    )


def _run(stream: RequestStream, rows: Sequence[list[int]], reason: int = LENGTH, stop: int | None = None):
    """Feeds rows of tokens, then the end; the text, the token ids and the last delta."""
    at = 0
    for row in rows:
        stopped = stream.receive(0, at, row, []) == "stopped"
        at += len(row)
        if stopped:
            break
    stream.finish(0, reason, stop)

    async def take():
        response = await stream.next_response()
        assert response is not None
        assert await stream.next_response() is None
        return response

    response = asyncio.run(take())
    (delta,) = response.outputs
    return delta.text, list(delta.token_ids), delta, response.usage


def _cut(text: str, stops: Sequence[str], *, include: bool) -> tuple[str, str | None]:
    """The text up to the stop that is complete first, going character by character; of two, the longer."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@pytest.mark.parametrize("family", ["byte-level", "byte-fallback"])
@given(
    text=st.text("abé🙂 ", min_size=1, max_size=40).filter(lambda text: text.strip()),
    stops=st.lists(st.text("abé🙂 ", min_size=1, max_size=4), max_size=3),
    include=st.booleans(),
    cuts=st.lists(st.integers(0, 60), max_size=5),
)
def test_text_ends_at_the_first_complete_stop_however_tokens_are_grouped(
    family: str, text: str, stops: list[str], include: bool, cuts: list[int]
) -> None:
    token_ids = _ids(text, family)
    bounds = [0, *sorted(min(cut, len(token_ids)) for cut in cuts), len(token_ids)]
    rows = [token_ids[a:b] for a, b in pairwise(bounds) if b > a]
    stream = _stream(family, stop=tuple(stops), include_stop_str_in_output=include)
    shown, received, delta, usage = _run(stream, rows)
    expected, found = _cut(text, stops, include=include)
    assert shown == expected
    assert delta.stop_string == (found or "")
    assert delta.finish_reason == (STOP if found else LENGTH)
    assert received == token_ids[: len(received)]
    assert usage.completion_tokens == len(received)
    if not found:
        assert received == token_ids
    one_by_one = _stream(family, stop=tuple(stops), include_stop_str_in_output=include)
    assert _run(one_by_one, [[token_id] for token_id in token_ids])[:2] == (shown, received)


def test_stop_string_that_spans_tokens_ends_the_text_before_it() -> None:
    token_ids = _ids("First Citizen:\nSpeak, speak.\n\nAll:")
    stop = "eak, sp"
    assert all(stop not in _codec().token_text(token_id) for token_id in token_ids)
    text, received, delta, _ = _run(_stream(stop=(stop,)), [[token_id] for token_id in token_ids])
    assert text == "First Citizen:\nSp"
    assert delta.stop_string == stop
    assert received == token_ids[: len(received)]
    assert len(received) < len(token_ids)


@pytest.mark.parametrize("reason", [STOP, LENGTH])
def test_beginning_of_a_stop_string_is_shown_when_nothing_follows(reason: int) -> None:
    assert _run(_stream(stop=("END",)), [_ids("the EN")], reason)[0] == "the EN"


def test_text_of_a_stop_token_is_not_shown_but_its_id_is() -> None:
    token_ids = _ids("the king")
    stop = token_ids[-1]
    assert _codec().token_text(stop) == "king" or _codec().token_text(stop).strip()
    text, received, delta, usage = _run(_stream(stop_token_ids=(stop,)), [token_ids], STOP, stop)
    assert text == _codec().decode(token_ids[:-1], skip_special_tokens=False)
    assert received == token_ids
    assert delta.stop_token_id == stop
    assert usage.completion_tokens == len(token_ids)


def test_text_of_a_stop_token_is_shown_when_asked_for() -> None:
    token_ids = _ids("the king")
    stream = _stream(stop_token_ids=(token_ids[-1],), include_stop_str_in_output=True)
    assert _run(stream, [token_ids], STOP, token_ids[-1])[0] == "the king"


@pytest.mark.parametrize(("params", "shown"), [({}, ""), ({"ignore_eos": True}, "<|endoftext|>")])
def test_text_of_an_end_token_is_shown_only_where_it_does_not_end(
    params: dict[str, bool], shown: str
) -> None:
    token_ids = [*_ids("so"), _EOS]
    assert _run(_stream(skip_special_tokens=False, **params), [token_ids])[0] == "so" + shown


def test_resumed_request_has_what_remains_of_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stream_module, "monotonic", lambda: now)
    stream = _stream(deadline_ms=5000)
    assert stream.admission(1).deadline_ms == 5000
    now += 3.25
    stream.receive(0, 0, [5], [])
    assert stream.admission(1).deadline_ms == 1750
    now += 60
    assert stream.admission(1).deadline_ms == 1
    assert _stream().admission(1).deadline_ms == 0
