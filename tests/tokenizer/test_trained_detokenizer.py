"""Incremental detokenization over trained tokenizers of every family: exact, prompt, and of a flat cost per token."""

from collections.abc import Sequence
from functools import cache
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire_tokenizer.detokenizer import REPLACEMENT, DetokenizerFactory
from quire_tokenizer.stream import RequestStream
from quire_tokenizer.text_codec import TextCodec
from tokenizers import Tokenizer

from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.tokenizer.families import FAMILIES
from tests.tokenizer.trained import TEXTS, TRAINED

_unhurried = settings(deadline=None)  # a family is trained where it is first used
_every_family = pytest.mark.parametrize("family", TRAINED)
_WITH_BYTES = ("byte-level BPE", "SentencePiece BPE", "SentencePiece Unigram")

_words = st.sampled_from([word for text in TEXTS for word in text.split(" ")])
_any_char = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_texts = st.lists(st.one_of(_words, _any_char), max_size=12).map(" ".join)


@cache
def _tokenizer(family: str) -> Tokenizer:
    return (TRAINED | FAMILIES)[family]()


@cache
def _factory(family: str) -> DetokenizerFactory:
    return DetokenizerFactory(_tokenizer(family))


def _encode(family: str, text: str) -> list[int]:
    return _tokenizer(family).encode(text, add_special_tokens=False).ids


def _grow(family: str, token_ids: Sequence[int], *, skip: bool = True) -> list[str]:
    """What was shown after each token, and at the end."""
    detokenizer = _factory(family).new(skip_special_tokens=skip)
    shown = [""]
    for token_id in token_ids:
        shown.append(shown[-1] + detokenizer.add(token_id))
    return [*shown[1:], shown[-1] + detokenizer.flush()]


@_every_family
@_unhurried
@given(data=st.data(), skip=st.booleans())
def test_any_tokens_give_the_full_decoding_and_nothing_is_taken_back(
    family: str, data: st.DataObject, skip: bool
) -> None:
    # Any ids, some of them outside of the vocabulary: bytes come in every broken order.
    ids = st.integers(0, _tokenizer(family).get_vocab_size() + 2)
    token_ids = data.draw(st.lists(ids, max_size=60))
    whole = _tokenizer(family).decode(token_ids, skip_special_tokens=skip)
    shown = _grow(family, token_ids, skip=skip)
    assert shown[-1] == whole
    assert all(whole.startswith(text) for text in shown)


@pytest.mark.parametrize("family", _WITH_BYTES)
@_unhurried
@given(data=st.data())
def test_runs_of_any_bytes_among_words_give_the_full_decoding(family: str, data: st.DataObject) -> None:
    byte_ids = _byte_ids(family)
    one = st.one_of(st.sampled_from(byte_ids), st.sampled_from(_encode(family, TEXTS[0] + TEXTS[5])))
    token_ids = data.draw(st.lists(one, max_size=60))
    assert _grow(family, token_ids)[-1] == _tokenizer(family).decode(token_ids)


@_every_family
@_unhurried
@given(text=_texts)
def test_any_text_gives_its_full_decoding_and_never_half_a_character(family: str, text: str) -> None:
    token_ids = _encode(family, text)
    whole = _tokenizer(family).decode(token_ids, skip_special_tokens=False)
    shown = _grow(family, token_ids, skip=False)
    assert shown[-1] == whole
    if REPLACEMENT not in text:
        assert not any(REPLACEMENT in each for each in shown)
    if family == "byte-level BPE":
        assert whole == text


@_every_family
@pytest.mark.parametrize("text", TEXTS)
def test_text_of_every_script_is_shown_as_soon_as_its_tokens_are_there(family: str, text: str) -> None:
    tokenizer = _tokenizer(family)
    token_ids = _encode(family, text)
    shown = _grow(family, token_ids)
    assert shown[-1] == tokenizer.decode(token_ids)
    for number, token_id in enumerate(token_ids):
        if (tokenizer.id_to_token(token_id) or "").startswith("<0x"):
            continue  # a run of bytes is certain only where it ends
        so_far = tokenizer.decode(token_ids[: number + 1])
        assert shown[number] == so_far.rstrip(REPLACEMENT), f"after token {number}"


@_unhurried
@given(raw=st.lists(st.integers(0, 255), max_size=12))
def test_a_run_of_bytes_is_shown_the_moment_it_is_surely_bad(raw: list[int]) -> None:
    family = "SentencePiece BPE"
    shown = _grow(family, [_byte_ids(family)[byte] for byte in raw])
    for number in range(1, len(raw) + 1):
        assert shown[number - 1] == (REPLACEMENT * number if _surely_bad(bytes(raw[:number])) else "")


@_every_family
@_unhurried
@given(data=st.data())
def test_deltas_add_up_however_the_tokens_were_grouped(family: str, data: st.DataObject) -> None:
    token_ids = data.draw(
        st.one_of(_texts.map(lambda text: _encode(family, text)), st.lists(st.integers(0, 200), max_size=40))
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(token_ids)), max_size=8)))
    rows = [token_ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(token_ids)], strict=True) if b > a]
    stream = RequestStream(
        request_id="r",
        tenant="",
        prompt_token_ids=[0],
        params=SamplingParams(max_tokens=100, output_kind=RequestOutputKind.DELTA),
        priority=0,
        codec=_codec(family),
    )
    text, num_seen = "", 0
    for row in rows:
        stream.receive(0, num_seen, row, [])
        num_seen += len(row)
        if data.draw(st.booleans()):
            text += _taken(stream)
    stream.finish(0, 2, None)
    assert text + _taken(stream) == _tokenizer(family).decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", [*TRAINED, *FAMILIES])
@pytest.mark.parametrize("kind", ["text", "one token", "all tokens", "tokens without text"])
def test_cost_of_a_token_is_flat(family: str, kind: str) -> None:
    tokenizer = _tokenizer(family)
    largest = tokenizer.get_vocab_size()
    token_ids = {
        "text": _encode(family, " ".join(TEXTS)) * 4,
        "one token": [7] * 1000,
        "all tokens": list(range(largest)),
        "tokens without text": [7] + [tokenizer.get_vocab().get("##", 8)] * 1000,
    }[kind]
    counting = _CountingTokenizer(tokenizer)
    detokenizer = DetokenizerFactory(cast("Tokenizer", counting)).new(skip_special_tokens=True)
    pieces = [detokenizer.add(token_id) for token_id in token_ids] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(token_ids)
    # Window and window with one more, of a token or a run of bytes each.
    assert counting.num_decoded <= 8 * len(token_ids) + 600


class _CountingTokenizer:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.num_decoded = 0

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        self.num_decoded += len(ids)
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def __getattr__(self, name: str) -> object:
        return getattr(self._tokenizer, name)


@cache
def _codec(family: str) -> TextCodec:
    return TextCodec(_tokenizer(family))


def _taken(stream: RequestStream) -> str:
    """What the client would get now."""
    return "".join(delta.text for delta in stream._pending.take())


@cache
def _byte_ids(family: str) -> list[int]:
    """The token of every byte."""
    tokenizer = _tokenizer(family)
    if family == "byte-level BPE":
        factory = _factory(family)
        assert factory._bytes_of_token is not None
        single = {piece[0]: i for i, piece in enumerate(factory._bytes_of_token) if len(piece) == 1}
        return [single[byte] for byte in range(256)]
    return [tokenizer.get_vocab()[f"<0x{byte:02X}>"] for byte in range(256)]


def _surely_bad(raw: bytes) -> bool:
    """Whether no continuation makes it UTF-8."""
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False
