"""The rules of sampling parameters, in one place: every message names the field, the value and the rule.

Two kinds: `check_params` needs the parameters alone, `check_against_model` also what serves them. Knows no prompt text
and no message.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from quire.errors import InvalidRequest

if TYPE_CHECKING:
    from quire.sampling_params import SamplingParams

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 256
MAX_BAD_WORDS = 64
MAX_BAD_WORD_TOKENS = 32
MAX_BAD_WORD_SEQUENCES = 256
MAX_LOGIT_BIASES = 1024
_MAX_IDS_SHOWN = 8
_INT64 = (-(2**63), 2**63 - 1)
_UINT32 = (0, 2**32 - 1)
_INTEGERS = (
    "n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens",
)  # fmt: skip
_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_FLAGS = (
    "include_stop_str_in_output", "ignore_eos", "detokenize", "skip_special_tokens",
    "spaces_between_special_tokens",
)  # fmt: skip


def check_params(params: "SamplingParams") -> None:
    """Raises `InvalidRequest` for values that break a rule in whatever model."""
    _check_types(params)
    _check_draws(params)
    _check_lengths(params)
    _check_reports(params)
    _check_stops(params)
    _check_tokens(params)


def check_against_model(params: "SamplingParams", *, vocab_size: int, max_model_len: int) -> None:
    """Raises `InvalidRequest` for a token outside the vocabulary and for a length that the context cannot have."""
    token_fields: tuple[tuple[str, Iterable[int]], ...] = (
        ("stop_token_ids", params.stop_token_ids),
        ("logit_bias", params.logit_bias or ()),
        ("allowed_token_ids", params.allowed_token_ids or ()),
    )
    for field, tokens in token_fields:
        largest = max(tokens, default=0)
        require(largest < vocab_size, field, largest, f"must be below the vocabulary size {vocab_size}")
    require(
        (params.truncate_prompt_tokens or 0) <= max_model_len,
        "truncate_prompt_tokens",
        params.truncate_prompt_tokens,
        f"must be at most max_model_len={max_model_len}",
    )


def check_bad_words(sequences: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raises `InvalidRequest` for sequences of tokens that cannot be kept out of an output."""
    field = "bad_words"
    require(
        len(sequences) <= MAX_BAD_WORD_SEQUENCES,
        field,
        f"{len(sequences)} token sequences",
        f"at most {MAX_BAD_WORD_SEQUENCES}",
    )
    for tokens in sequences:
        require(
            1 <= len(tokens) <= MAX_BAD_WORD_TOKENS,
            field,
            f"{len(tokens)} tokens",
            f"a bad word has from 1 to {MAX_BAD_WORD_TOKENS} tokens",
        )
        require(
            max(tokens) < vocab_size, field, max(tokens), f"must be below the vocabulary size {vocab_size}"
        )


def check_draws(
    params: "SamplingParams", bad_words: Sequence[Sequence[int]], eos_token_ids: Iterable[int]
) -> None:
    """Raises `InvalidRequest` when the very first token cannot be drawn, because every allowed one is forbidden.

    Bad words of one token forbid it, and `min_tokens` forbids what would end the sequence; a `logit_bias` forbids
    nothing. What is found out only as tokens come ends the request then, with an error of the same field.
    """
    if params.allowed_token_ids is None:
        return
    left = set(params.allowed_token_ids) - {word[0] for word in bad_words if len(word) == 1}
    field, value = "allowed_token_ids", _listed(params.allowed_token_ids)
    require(bool(left), field, value, "bad_words forbids all of them")
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else eos_token_ids)}
    rule = f"min_tokens={params.min_tokens} forbids what is left of them, all of which would end the output"
    require(params.min_tokens == 0 or not left <= ends, field, value, rule)


def _listed(token_ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, token_ids[:_MAX_IDS_SHOWN]))
    return f"[{shown}{', ...' if len(token_ids) > _MAX_IDS_SHOWN else ''}]"


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Raises `InvalidRequest` unless the rule holds."""
    if not condition:
        raise InvalidRequest(f"{field}={value}: {rule}", field=field)


def _check_types(params: "SamplingParams") -> None:
    for name in _INTEGERS:
        value = getattr(params, name)
        _require_type(value is None or _is_integer(value), name, value, "must be a whole number")
    for name in _NUMBERS:
        value = getattr(params, name)
        is_number = value is None or _is_integer(value) or isinstance(value, float)
        _require_type(is_number, name, value, "must be a number")
    for name in _FLAGS:
        value = getattr(params, name)
        _require_type(isinstance(value, bool), name, value, "must be true or false")


def _require_type(condition: bool, field: str, value: object, rule: str) -> None:
    require(condition, field, repr(value), rule)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_draws(params: "SamplingParams") -> None:
    _check_range("n", params.n, 1, _UINT32[1], "must be at least 1 and fit in 32 bits")
    _check_range("temperature", params.temperature, 0, _LARGEST, "must be at least 0 and finite")
    if params.top_p is not None:
        require(0 < params.top_p <= 1, "top_p", params.top_p, "must be above 0 and at most 1")
    _check_range("top_k", params.top_k, -1, 2**31 - 1, "must be at least 1, or 0 or -1 to keep all")
    _check_range("min_p", params.min_p, 0, 1, "must be from 0 to 1")
    _check_range("seed", params.seed, *_INT64, "must fit in 64 bits")
    _check_range("presence_penalty", params.presence_penalty, -2, 2, "must be from -2 to 2")
    _check_range("frequency_penalty", params.frequency_penalty, -2, 2, "must be from -2 to 2")
    repetition = params.repetition_penalty
    if repetition is not None:
        require(0 < repetition <= _LARGEST, "repetition_penalty", repetition, "must be above 0 and finite")


_LARGEST = 3.4028234663852886e38
"""Of float32: what is larger travels as infinity."""


def _check_range(field: str, value: float | None, smallest: float, largest: float, rule: str) -> None:
    require(value is None or smallest <= value <= largest, field, value, rule)


def _check_lengths(params: "SamplingParams") -> None:
    _check_range("max_tokens", params.max_tokens, 1, _UINT32[1], "must be at least 1 and fit in 32 bits")
    _check_range("min_tokens", params.min_tokens, *_UINT32, "must be at least 0 and fit in 32 bits")
    if params.max_tokens is not None:
        require(
            params.min_tokens <= params.max_tokens,
            "min_tokens",
            params.min_tokens,
            f"must be at most max_tokens={params.max_tokens}",
        )
    kept = params.truncate_prompt_tokens
    require(
        kept is None or kept == -1 or 1 <= kept < 2**31,
        "truncate_prompt_tokens",
        kept,
        "must be at least 1, or -1 for as many as fit",
    )


def _check_reports(params: "SamplingParams") -> None:
    for name in ("logprobs", "prompt_logprobs"):
        _check_range(name, getattr(params, name), 0, MAX_LOGPROBS, f"must be from 0 to {MAX_LOGPROBS}")


def _check_stops(params: "SamplingParams") -> None:
    _check_texts("stop", params.stop, MAX_STOP_STRINGS, "a stop string must not be empty")
    require(
        params.detokenize or not params.stop,
        "stop",
        list(params.stop),
        "needs detokenize, which finds it in the text",
    )
    _check_texts("bad_words", params.bad_words, MAX_BAD_WORDS, "a bad word must not be empty")


def _check_texts(field: str, texts: Sequence[object], most: int, rule: str) -> None:
    require(len(texts) <= most, field, f"{len(texts)} strings", f"at most {most}")
    for text in texts:
        if not isinstance(text, str):
            raise InvalidRequest(f"{field}={text!r}: must be a string", field=field)
        require(bool(text.strip() if field == "bad_words" else text), field, repr(text), rule)


def _check_tokens(params: "SamplingParams") -> None:
    _check_token_ids("stop_token_ids", params.stop_token_ids)
    num_stops = len(params.stop_token_ids)
    require(
        num_stops <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"{num_stops} ids", f"at most {MAX_STOP_TOKEN_IDS}"
    )
    if params.allowed_token_ids is not None:
        require(bool(params.allowed_token_ids), "allowed_token_ids", "[]", "must name at least one token")
        _check_token_ids("allowed_token_ids", params.allowed_token_ids)
    biases = params.logit_bias or {}
    _check_token_ids("logit_bias", list(biases))
    require(
        len(biases) <= MAX_LOGIT_BIASES, "logit_bias", f"{len(biases)} tokens", f"at most {MAX_LOGIT_BIASES}"
    )
    for token, bias in biases.items():
        require(math.isfinite(bias), "logit_bias", f"{{{token}: {bias}}}", "a bias must be finite")


def _check_token_ids(field: str, token_ids: Sequence[int]) -> None:
    for token in token_ids:
        require(_is_integer(token), field, repr(token), "must be a whole number")
        require(0 <= token <= _UINT32[1], field, token, "must be a token id, from 0")
