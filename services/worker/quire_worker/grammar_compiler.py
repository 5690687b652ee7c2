"""Compiles the grammars of requests over the model's vocabulary, on threads of its own.

Compiled grammars are kept by their text, the least recently used ones dropped; a sequence gets a copy. Knows no slot
and no step.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from pathlib import Path
from threading import Lock
from typing import Any

from google.protobuf.message import DecodeError
from llguidance import LLMatcher, LLTokenizer

from quire.errors import InvalidRequest
from quire.grammar import GrammarError, check_matcher, grammar_of, parser_limits
from quire.structured_outputs import StructuredOutputsParams
from quire.v1 import sampling_pb2

_NUM_THREADS = 2
_MAX_KEPT = 256


class GrammarCompiler:
    """Grammars over one vocabulary."""

    def __init__(self, tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._vocabulary = self._threads.submit(_load_vocabulary, tokenizer_file, vocab_size, eos_token_ids)
        self._kept: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._lock = Lock()

    def submit(self, constraint: bytes, token_ids: Sequence[int]) -> "Future[LLMatcher]":
        """A matcher of a serialised constraint that has followed `token_ids`; fails with `GrammarError`."""
        return self._threads.submit(self._matcher, constraint, token_ids)

    def _matcher(self, constraint: bytes, token_ids: Sequence[int]) -> LLMatcher:
        with self._lock:
            compiled = self._kept.get(constraint)
            if compiled is not None:
                self._kept.move_to_end(constraint)
        if compiled is None:
            compiled = _compiled(constraint, self._vocabulary.result())
            self._keep(constraint, compiled)
        with self._lock:
            matcher = compiled.deep_copy()
        matcher.consume_tokens(list(token_ids))
        if matcher.is_error():
            # Copies share the library's lexer, which stays broken if it broke under one of them: the next one starts anew.
            with self._lock:
                self._kept.pop(constraint, None)
        check_matcher(matcher)
        return matcher

    def _keep(self, constraint: bytes, compiled: LLMatcher) -> None:
        with self._lock:
            self._kept[constraint] = compiled
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)


def _load_vocabulary(tokenizer_file: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    if not tokenizer_file.is_file():
        raise GrammarError(
            "the worker's model directory has no tokenizer.json, which structured outputs need"
        )
    try:
        return LLTokenizer(
            _with_special_ends(json.loads(tokenizer_file.read_text(encoding="utf-8")), eos_token_ids),
            n_vocab=vocab_size,
            eos_token=list(eos_token_ids) or None,
        )
    except (ValueError, OSError) as error:
        raise GrammarError(
            f"the model's tokenizer.json cannot be used for structured outputs: {error}"
        ) from error


def _with_special_ends(tokenizer: dict[str, Any], eos_token_ids: Sequence[int]) -> str:
    """The tokenizer with ends of sequence that are no text: the library breaks over one that a text can hold."""
    added: list[dict[str, Any]] = tokenizer.setdefault("added_tokens", [])
    known = {token["id"] for token in added if token.get("special")}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for token_id, text in _texts(tokenizer, set(eos_token_ids) - known).items():
        added[:] = [token for token in added if token["id"] != token_id]
        added.append({"id": token_id, "content": text, "special": True} | flags)
    added.sort(key=itemgetter("id"))
    return json.dumps(tokenizer)


def _texts(tokenizer: dict[str, Any], token_ids: set[int]) -> dict[int, str]:
    """What the tokens stand for, those that the tokenizer has."""
    vocab = tokenizer["model"].get("vocab", {})
    pairs = vocab.items() if isinstance(vocab, dict) else ((entry[0], at) for at, entry in enumerate(vocab))
    texts = {token_id: text for text, token_id in pairs if token_id in token_ids}
    return texts | {
        token["id"]: token["content"] for token in tokenizer["added_tokens"] if token["id"] in token_ids
    }


def _compiled(constraint: bytes, vocabulary: LLTokenizer) -> LLMatcher:
    try:
        params = StructuredOutputsParams.from_proto(
            sampling_pb2.StructuredOutputsParams.FromString(constraint)
        )
    except (DecodeError, InvalidRequest) as error:
        raise GrammarError(str(error)) from error
    matcher = LLMatcher(
        vocabulary, grammar_of(params, partial(_token_id_of, vocabulary)), log_level=0, limits=parser_limits()
    )
    check_matcher(matcher)
    # The first mask of a large grammar takes long and is kept: not on the time of a step.
    matcher.compute_bitmask()
    check_matcher(matcher)
    return matcher


def _token_id_of(vocabulary: LLTokenizer, marker: str) -> int | None:
    """The token that a marker is, if the library holds it for no text."""
    token_ids = vocabulary.tokenize_str(marker, parse_special=True)
    return token_ids[0] if len(token_ids) == 1 and vocabulary.is_special_token(token_ids[0]) else None
