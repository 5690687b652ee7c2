"""SamplingParams: how the tokens of one request are drawn and when it ends. Names and rules are vLLM's.

The one place where a client's parameters are validated: every message names the field, the value and the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from quire.errors import InvalidRequest
from quire.v1 import sampling_pb2

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_TOKEN_IDS = 256
_SEED_RANGE = (-(2**63), 2**63 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """Default sampling of a model, from its `generation_config.json`; None leaves vLLM's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    @classmethod
    def from_generation_config(cls, raw: Mapping[str, Any]) -> "ModelDefaults":
        """The defaults that a `generation_config.json` sets."""
        if raw.get("do_sample") is False:
            return cls()
        return cls(**{each.name: raw[each.name] for each in fields(cls) if raw.get(each.name) is not None})


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Parameters of one request. Raises `InvalidRequest` when made with values that break a rule.

    None means unset: the default of the model or of vLLM is taken when the request is resolved.
    """

    n: int = 1
    """Sequences drawn for the prompt."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float | None = None
    top_k: int | None = None
    """0 or -1 keeps all."""
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    """Most tokens per sequence; capped by what the context leaves after the prompt."""
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives per token; 0 reports the drawn token alone."""
    detokenize: bool = True
    skip_special_tokens: bool = True
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the output holds."""
    frequency_penalty: float = 0.0
    """Taken off once for each time that the output holds the token."""
    repetition_penalty: float | None = None
    """Divides the positive and multiplies the negative logits of tokens that prompt or output hold."""

    def __post_init__(self) -> None:
        _require(self.n >= 1, "n", self.n, "must be at least 1")
        if self.temperature is not None:
            _require(
                0 <= self.temperature < float("inf"),
                "temperature",
                self.temperature,
                "must be at least 0 and finite",
            )
        if self.top_p is not None:
            _require(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1")
        if self.top_k is not None:
            _require(self.top_k >= -1, "top_k", self.top_k, "must be at least 1, or 0 or -1 to keep all")
        if self.min_p is not None:
            _require(0 <= self.min_p <= 1, "min_p", self.min_p, "must be from 0 to 1")
        if self.seed is not None:
            _require(_SEED_RANGE[0] <= self.seed <= _SEED_RANGE[1], "seed", self.seed, "must fit in 64 bits")
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "must be at least 1")
            _require(
                self.min_tokens <= self.max_tokens,
                "min_tokens",
                self.min_tokens,
                f"must be at most max_tokens={self.max_tokens}",
            )
        _require(self.min_tokens >= 0, "min_tokens", self.min_tokens, "must be at least 0")
        if self.logprobs is not None:
            _require(
                0 <= self.logprobs <= MAX_LOGPROBS,
                "logprobs",
                self.logprobs,
                f"must be from 0 to {MAX_LOGPROBS}",
            )
        self._check_penalties()
        self._check_stops()

    def _check_penalties(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(-2 <= value <= 2, name, value, "must be from -2 to 2")
        if self.repetition_penalty is not None:
            _require(
                0 < self.repetition_penalty < float("inf"),
                "repetition_penalty",
                self.repetition_penalty,
                "must be above 0 and finite",
            )

    def _check_stops(self) -> None:
        _require(
            len(self.stop) <= MAX_STOP_STRINGS,
            "stop",
            f"{len(self.stop)} strings",
            f"at most {MAX_STOP_STRINGS}",
        )
        _require(all(self.stop), "stop", "''", "a stop string must not be empty")
        _require(
            self.detokenize or not self.stop,
            "stop",
            self.stop,
            "needs detokenize, which finds it in the text",
        )
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS,
            "stop_token_ids",
            f"{len(self.stop_token_ids)} ids",
            f"at most {MAX_STOP_TOKEN_IDS}",
        )
        _require(
            all(i >= 0 for i in self.stop_token_ids),
            "stop_token_ids",
            self.stop_token_ids,
            "must not be negative",
        )

    @classmethod
    def from_proto(cls, message: sampling_pb2.SamplingParams) -> "SamplingParams":
        """The parameters of a message; unset fields stay unset."""
        values: dict[str, Any] = {
            descriptor.name: getattr(message, descriptor.name)
            for descriptor, _value in message.ListFields()
            if descriptor.name not in ("stop", "stop_token_ids")
        }
        return cls(stop=tuple(message.stop), stop_token_ids=tuple(message.stop_token_ids), **values)

    def to_proto(self) -> sampling_pb2.SamplingParams:
        """The message of these parameters; unset fields stay unset."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return sampling_pb2.SamplingParams(
            **{name: value for name, value in values.items() if value is not None}
        )

    def resolve(
        self,
        defaults: ModelDefaults,
        *,
        prompt_len: int,
        max_model_len: int,
        vocab_size: int,
        drawn_seed: int,
    ) -> "SamplingParams":
        """These parameters with every field set, for a prompt of `prompt_len` tokens.

        `max_tokens` is capped by what the context leaves, as vLLM does. `drawn_seed` serves a request without one.
        Raises `InvalidRequest` for a stop token outside the vocabulary.
        """
        for token in self.stop_token_ids:
            _require(
                token < vocab_size, "stop_token_ids", token, f"must be below the vocabulary size {vocab_size}"
            )
        room = max_model_len - prompt_len
        max_tokens = min(room, self.max_tokens or room)
        return replace(
            self,
            temperature=_first(self.temperature, defaults.temperature, 1.0),
            top_p=_first(self.top_p, defaults.top_p, 1.0),
            top_k=max(0, int(_first(self.top_k, defaults.top_k, 0))),
            min_p=_first(self.min_p, defaults.min_p, 0.0),
            repetition_penalty=_first(self.repetition_penalty, defaults.repetition_penalty, 1.0),
            seed=drawn_seed if self.seed is None else self.seed,
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens, max_tokens),
        )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise InvalidRequest(f"{field}={value}: {rule}", field=field)
