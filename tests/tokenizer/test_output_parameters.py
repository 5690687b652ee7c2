"""What parameters of the front door alone do: kinds of output, truncation, special tokens, and bad words as tokens."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from quire_tokenizer.bad_words import bad_words_token_ids
from quire_tokenizer.encoder import Encoder
from quire_tokenizer.engine import _truncated
from quire_tokenizer.stream import LENGTH, RequestStream
from quire_tokenizer.text_codec import TextCodec
from tokenizers import AddedToken, Tokenizer

from quire.sampling_params import RequestOutputKind, SamplingParams
from tests.tokenizer.families import byte_level, word_piece

CUMULATIVE, DELTA, FINAL_ONLY = RequestOutputKind


def _messages(kind: RequestOutputKind) -> list[str]:
    """The text of each message of a client that takes them as they come."""
    codec = TextCodec(byte_level())
    stream = RequestStream(
        request_id="one",
        tenant="",
        prompt_token_ids=[1],
        params=SamplingParams(output_kind=kind),
        priority=0,
        codec=codec,
    )
    (token_ids,) = codec.encode_batch(["abc"], add_special_tokens=False)
    texts: list[str] = []
    for at, token_id in enumerate(token_ids):
        stream.receive(0, at, [token_id], [])
        texts += [delta.text for delta in stream.take()]
    stream.finish(0, LENGTH, None)
    return texts + [delta.text for delta in stream.take()]


def test_kinds_of_output_say_what_is_new_or_all_so_far_or_all_at_the_end() -> None:
    deltas = _messages(DELTA)
    assert len(deltas) > 2
    assert "".join(deltas) == "abc"
    assert _messages(CUMULATIVE) == ["".join(deltas[: at + 1]) for at in range(len(deltas))]
    assert _messages(FINAL_ONLY) == ["abc"]


@pytest.mark.parametrize(("kept", "expected"), [(None, 9), (4, 4), (20, 9), (-1, 7)])
def test_a_prompt_is_cut_to_its_last_tokens(kept: int | None, expected: int) -> None:
    prompt = list(range(9))
    cut = _truncated(prompt, SamplingParams(truncate_prompt_tokens=kept), max_model_len=8)
    assert cut == prompt[-expected:]


def test_special_tokens_next_to_each_other_lose_their_space_on_demand() -> None:
    tokenizer: Tokenizer = word_piece()
    tokenizer.add_special_tokens([AddedToken("<a>", special=True), AddedToken("<b>", special=True)])
    codec = TextCodec(tokenizer)
    token_ids = [codec.vocab_size - 2, codec.vocab_size - 1]

    def text(**params: bool) -> str:
        detokenizer = codec.detokenizer(**{"skip_special_tokens": False, **params})
        return "".join(map(detokenizer.add, token_ids)) + detokenizer.flush()

    assert text() == "<a> <b>"
    assert text(spaces_between_special_tokens=False) == "<a><b>"
    assert text(skip_special_tokens=True) == ""


def test_a_bad_word_is_told_as_it_begins_a_text_and_as_it_follows_a_space() -> None:
    codec = TextCodec(byte_level())
    with ThreadPoolExecutor(1) as executor:
        encoded = asyncio.run(bad_words_token_ids([" no"], Encoder(codec, executor)))
    assert encoded == codec.encode_batch(["no", " no"], add_special_tokens=False)
