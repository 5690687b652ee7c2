"""How the tokens of one request are drawn: the value, its rules, and its form on the wire.

Field names, meanings and defaults are those of vLLM's SamplingParams; `None` means "not set, take the default".
`from_proto` and the constructor check what can be checked without a model, `resolve` what needs one. Knows no
tokenizer and no tensor.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from quire.errors import InvalidRequest
from quire.v1 import sampling_pb2

MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 256
MAX_LOGPROBS = 20
MAX_N = 1024
"""Bound of `n` before any scheduler's own `max_num_seqs` is known."""

_INT64 = range(-(2**63), 2**63)
_UINT32 = range(2**32)
_SCALARS = (
    "n", "temperature", "top_p", "top_k", "min_p", "seed", "max_tokens", "min_tokens",
    "include_stop_str_in_output", "ignore_eos", "logprobs", "detokenize", "skip_special_tokens",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """Sampling defaults of a model, from its generation_config.json; the values here are those without one."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Sampling parameters of a request. Raises `InvalidRequest` naming field, value and rule.

    The rules are those written beside each field in protos/quire/v1/sampling.proto.
    """

    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        _check(1 <= self.n <= MAX_N, "n", self.n, f"must lie in [1, {MAX_N}]")
        _check_number("temperature", self.temperature, "must be finite and at least 0", lambda v: v >= 0)
        _check_number("top_p", self.top_p, "must lie in (0, 1]", lambda v: 0 < v <= 1)
        _check_number("top_k", self.top_k, "must be at least 1, or 0 or -1 for all tokens", lambda v: -1 <= v < 2**31)
        _check_number("min_p", self.min_p, "must lie in [0, 1]", lambda v: 0 <= v <= 1)
        _check(self.seed is None or self.seed in _INT64, "seed", self.seed, "must fit in 64 bits with sign")
        self._check_lengths()
        self._check_stops()

    def _check_lengths(self) -> None:
        if self.max_tokens is not None:
            _check(1 <= self.max_tokens < 2**31, "max_tokens", self.max_tokens, "must be at least 1")
            rule = f"must be at most max_tokens ({self.max_tokens})"
            _check(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, rule)
        _check(0 <= self.min_tokens < 2**31, "min_tokens", self.min_tokens, "must be at least 0")
        rule = f"must lie in [0, {MAX_LOGPROBS}]"
        _check(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, rule)

    def _check_stops(self) -> None:
        num_strings, num_ids = len(self.stop), len(self.stop_token_ids)
        _check(num_strings <= MAX_STOP_STRINGS, "stop", f"{num_strings} strings", f"must be at most {MAX_STOP_STRINGS}")
        _check(all(self.stop), "stop", list(self.stop), "must not contain an empty string")
        _check(self.detokenize or not self.stop, "stop", list(self.stop), "must be empty when detokenize is false")
        rule = f"must be at most {MAX_STOP_TOKEN_IDS}"
        _check(num_ids <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"{num_ids} ids", rule)
        for token_id in self.stop_token_ids:
            _check(token_id in _UINT32, "stop_token_ids", token_id, "must be a token id")

    @classmethod
    def from_proto(cls, message: sampling_pb2.SamplingParams) -> "SamplingParams":
        """The value of `message`, unset fields left at their defaults. Raises `InvalidRequest`."""
        given = {name: getattr(message, name) for name in _SCALARS if message.HasField(name)}
        return cls(**given, stop=tuple(message.stop), stop_token_ids=tuple(message.stop_token_ids))

    def to_proto(self) -> sampling_pb2.SamplingParams:
        """The message that `from_proto` reads back, `None` fields unset. Floats travel in 32 bits."""
        message = sampling_pb2.SamplingParams(stop=self.stop, stop_token_ids=self.stop_token_ids)
        for name in _SCALARS:
            value = getattr(self, name)
            if value is not None:
                setattr(message, name, value)
        return message

    def resolve(
        self, defaults: ModelDefaults, prompt_len: int, max_model_len: int, draw_seed: int
    ) -> "SamplingParams":
        """These parameters with every field set but `logprobs`, whose `None` means none.

        `draw_seed` is the seed of a request that came without one. `max_tokens` becomes, or is cut to, what the
        context leaves after `prompt_len` tokens. Raises `InvalidRequest` when that is nothing.
        """
        room = max_model_len - prompt_len
        rule = f"must leave room for at least one token in the context of {max_model_len} tokens (max_model_len)"
        _check(room >= 1, "prompt", f"{prompt_len} tokens", rule)
        _check(self.min_tokens <= room, "min_tokens", self.min_tokens, f"must fit in the context, which leaves {room}")
        top_k = defaults.top_k if self.top_k is None else self.top_k
        return replace(
            self,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=max(top_k, 0),
            min_p=defaults.min_p if self.min_p is None else self.min_p,
            seed=draw_seed if self.seed is None else self.seed,
            max_tokens=room if self.max_tokens is None else min(self.max_tokens, room),
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InvalidRequest` when a stop token lies outside a vocabulary of `vocab_size` tokens."""
        for token_id in self.stop_token_ids:
            rule = f"must lie in the vocabulary of {vocab_size} tokens"
            _check(token_id < vocab_size, "stop_token_ids", token_id, rule)


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """`stop` as `SamplingParams` holds it, from any of the forms that clients write."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def _check_number(name: str, value: float | None, rule: str, holds: Callable[[float], bool]) -> None:
    _check(value is None or (math.isfinite(value) and holds(value)), name, value, rule)


def _check(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        shown = f"{value:g}" if isinstance(value, float) else value
        raise InvalidRequest(f"{name}={shown}: {rule}", field=f"sampling_params.{name}" if name != "prompt" else name)
