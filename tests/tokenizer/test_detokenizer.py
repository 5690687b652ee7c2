"""Incremental detokenization: pieces add up to the full decoding for every family, and no piece is ever taken back."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire_tokenizer.detokenizer import REPLACEMENT, DetokenizerFactory
from tokenizers import Tokenizer

from tests.tokenizer.families import FAMILIES

_every_family = pytest.mark.parametrize("family", FAMILIES)


@cache
def _tokenizer(family: str) -> tuple[Tokenizer, DetokenizerFactory]:
    tokenizer = FAMILIES[family]()
    return tokenizer, DetokenizerFactory(tokenizer)


def _pieces(factory: DetokenizerFactory, token_ids: list[int], *, skip: bool) -> list[str]:
    detokenizer = factory.new(skip_special_tokens=skip)
    return [*(detokenizer.add(token_id) for token_id in token_ids), detokenizer.flush()]


@_every_family
@given(data=st.data(), skip=st.booleans())
def test_pieces_add_up_to_the_full_decoding_of_any_tokens(
    family: str, data: st.DataObject, skip: bool
) -> None:
    tokenizer, factory = _tokenizer(family)
    # A few ids lie outside of the tokenizer: models often have a larger output layer.
    largest = tokenizer.get_vocab_size() + 2
    token_ids = data.draw(st.lists(st.integers(0, largest), max_size=40))
    pieces = _pieces(factory, token_ids, skip=skip)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=skip)


@given(raw=st.lists(st.integers(0, 255), max_size=24), tail=st.sampled_from(["", "a", "▁the", "</s>", "你"]))
def test_runs_of_byte_tokens_decode_as_the_whole_does(raw: list[int], tail: str) -> None:
    tokenizer, factory = _tokenizer("byte-fallback")
    token_ids = [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in raw]
    token_ids += [tokenizer.token_to_id(tail)] if tail else []
    pieces = _pieces(factory, token_ids, skip=True)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)


@pytest.mark.parametrize("family", ["byte-level", "byte-fallback"])
@given(text=st.text(st.characters(exclude_characters=REPLACEMENT, exclude_categories=["Cs"]), max_size=30))
def test_no_piece_of_a_text_holds_half_a_character(family: str, text: str) -> None:
    tokenizer, factory = _tokenizer(family)
    token_ids = tokenizer.encode(text, add_special_tokens=False).ids
    pieces = _pieces(factory, token_ids, skip=False)
    assert not any(REPLACEMENT in piece for piece in pieces)
    assert "".join(pieces) == text


def test_character_of_several_byte_tokens_comes_in_one_piece() -> None:
    tokenizer, factory = _tokenizer("byte-fallback")
    token_ids = tokenizer.encode("a🙂b", add_special_tokens=False).ids
    assert len(token_ids) > 4
    assert [piece for piece in _pieces(factory, token_ids, skip=True) if piece] == ["a", "🙂b"]


def test_one_bad_byte_turns_its_whole_run_into_replacements() -> None:
    tokenizer, factory = _tokenizer("byte-fallback")
    token_ids = [tokenizer.token_to_id(token) for token in ("<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>", "a")]
    assert "".join(_pieces(factory, token_ids, skip=True)) == 4 * REPLACEMENT + "a"


def test_unfinished_character_comes_out_at_the_end() -> None:
    tokenizer, factory = _tokenizer("byte-level")
    token_ids = tokenizer.encode("é", add_special_tokens=False).ids
    assert len(token_ids) == 2
    assert _pieces(factory, token_ids[:1], skip=True) == ["", REPLACEMENT]
