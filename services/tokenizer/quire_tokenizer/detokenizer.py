"""Incremental detokenization: one token in, the text that became certain out; never half a character.

For byte-level BPE a table gives every token's bytes, and an incremental UTF-8 decoder does the rest. For every other
family the text of a short window of tokens is compared with that of the same window and one more token, as the field
does it (Hugging Face text-generation-inference). The pieces always add up to the full decoding; therefore a run of
byte-fallback tokens gives its text when it ends or is surely bad, because one bad byte turns every byte of the run into
U+FFFD. The window never grows with the text, nor with tokens that bring none.
"""

import codecs
import json
import re
from typing import Protocol

from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Detokenizer(Protocol):
    """The text of one sequence, as it grows."""

    def add(self, token_id: int) -> str:
        """Takes one token; returns the text that became certain, maybe none."""
        ...

    def flush(self) -> str:
        """The rest of the text once no token follows; bytes that are no character become U+FFFD."""
        ...


class DetokenizerFactory:
    """Makes detokenizers for one tokenizer; tables are built once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._added = {i: token.content for i, token in added.items()}
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        self._bytes_of_token = _byte_table(tokenizer) if _is_byte_level(tokenizer) else None
        self._bytes_without_special = (
            [b"" if i in self._special_ids else piece for i, piece in enumerate(self._bytes_of_token)]
            if self._bytes_of_token is not None
            else None
        )
        self._byte_of_id = _byte_fallback(tokenizer)
        self._joins_bytes = "ByteLevel" in _decoder_types(tokenizer)

    def new(self, *, skip_special_tokens: bool, spaces_between_special_tokens: bool = True) -> Detokenizer:
        """A detokenizer for one sequence."""
        detokenizer = self._new(skip_special_tokens=skip_special_tokens)
        if skip_special_tokens or spaces_between_special_tokens:
            return detokenizer
        return _UnspacedDetokenizer(detokenizer, self._added)

    def _new(self, *, skip_special_tokens: bool) -> Detokenizer:
        table = self._bytes_without_special if skip_special_tokens else self._bytes_of_token
        if table is not None:
            return _ByteLevelDetokenizer(table)
        return _WindowDetokenizer(
            self._tokenizer,
            self._special_ids if skip_special_tokens else frozenset(),
            self._byte_of_id,
            joins_bytes=self._joins_bytes,
        )


class _UnspacedDetokenizer:
    """Shows an added token that follows another one as it is, without a space that the decoder puts before it."""

    def __init__(self, detokenizer: Detokenizer, added: dict[int, str]) -> None:
        self._detokenizer = detokenizer
        self._added = added
        self._follows_added = False

    def add(self, token_id: int) -> str:
        piece = self._detokenizer.add(token_id)
        content = self._added.get(token_id)
        if content is not None and self._follows_added:
            piece = content
        self._follows_added = content is not None
        return piece

    def flush(self) -> str:
        return self._detokenizer.flush()


class _ByteLevelDetokenizer:
    def __init__(self, bytes_of_token: list[bytes]) -> None:
        self._bytes_of_token = bytes_of_token
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode

    def add(self, token_id: int) -> str:
        table = self._bytes_of_token
        return self._decode(table[token_id]) if token_id < len(table) else ""

    def flush(self) -> str:
        return self._decode(b"", True)


class _WindowDetokenizer:
    """Decodes `[prefix, read)` and `[prefix, end)`; what the second has more is new, unless it may still change."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        skipped_ids: frozenset[int],
        byte_of_id: dict[int, int],
        *,
        joins_bytes: bool,
    ) -> None:
        self._tokenizer = tokenizer
        self._skipped_ids = skipped_ids
        self._byte_of_id = byte_of_id
        self._joins_bytes = joins_bytes
        self._token_ids: list[int] = []
        self._num_read = 0
        self._character = b""
        """What a run of bytes has of a character that is not complete."""
        self._run_is_bad = False

    def add(self, token_id: int) -> str:
        if token_id in self._skipped_ids or self._tokenizer.id_to_token(token_id) is None:
            return ""
        if token_id in self._byte_of_id:
            return self._add_byte(token_id)
        self._character = b""
        self._run_is_bad = False
        self._token_ids.append(token_id)
        piece = self._new_text()
        if not piece and self._num_read:
            self._token_ids.pop()
        if not piece or (self._joins_bytes and piece.endswith(REPLACEMENT)):
            return ""
        # The tokens of the last piece stay as the window's start: they fix the spacing of what follows.
        del self._token_ids[: self._num_read]
        self._num_read = len(self._token_ids)
        return piece

    def flush(self) -> str:
        piece = self._new_text()
        self._token_ids.clear()
        self._num_read = 0
        return piece

    def _add_byte(self, token_id: int) -> str:
        """Takes one byte of a run: nothing is certain until the run ends, but that it is bad, once it is."""
        if self._run_is_bad:
            return REPLACEMENT
        self._token_ids.append(token_id)
        self._character += bytes((self._byte_of_id[token_id],))
        try:
            self._character.decode()
            self._character = b""
        except UnicodeDecodeError as error:
            self._run_is_bad = error.reason != "unexpected end of data"
        if not self._run_is_bad:
            return ""
        piece = self._new_text()
        # Whatever follows, the run's bytes are U+FFFD each: one byte that is none by itself stands for all of them.
        self._token_ids = [next(i for i in reversed(self._token_ids) if self._byte_of_id.get(i, 0) >= 0x80)]
        self._num_read = 1
        return piece

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._token_ids[: self._num_read], skip_special_tokens=False)
        return self._tokenizer.decode(self._token_ids, skip_special_tokens=False)[len(before) :]


def _is_byte_level(tokenizer: Tokenizer) -> bool:
    types = _decoder_types(tokenizer)
    return "ByteLevel" in types and types <= {"ByteLevel", "Fuse"}


def _decoder_types(tokenizer: Tokenizer) -> set[str]:
    """The decoder's type, or those that it is a sequence of."""
    decoder = json.loads(tokenizer.to_str())["decoder"] or {}
    return {str(each.get("type")) for each in decoder.get("decoders", [decoder])}


def _byte_fallback(tokenizer: Tokenizer) -> dict[int, int]:
    """The byte of each token that the ByteFallback decoder takes for one, such as <0x0A>; none where it is not used."""
    if "ByteFallback" not in _decoder_types(tokenizer):
        return {}
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    return {i: int(token[3:5], 16) for token, i in vocab.items() if _BYTE_TOKEN.fullmatch(token)}


def _byte_table(tokenizer: Tokenizer) -> list[bytes]:
    byte_of_char = _byte_of_char()
    table: list[bytes] = []
    # Ids may have holes: the number of tokens is not the bound.
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    for token_id in range(largest + 1):
        token = tokenizer.id_to_token(token_id) or ""
        if all(char in byte_of_char for char in token):
            table.append(bytes(byte_of_char[char] for char in token))
        else:
            table.append(token.encode())
    return table


def _byte_of_char() -> dict[str, int]:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
