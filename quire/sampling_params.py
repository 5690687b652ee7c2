"""SamplingParams: how the tokens of one request are drawn and when it ends. Names, defaults and rules are vLLM's.

A client's parameters become one object here, whichever door they came through; what they may be is said in
`sampling_rules`, and what unset ones become for one prompt and one model in `SamplingParams.resolve`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any

from quire.sampling_rules import check_against_model, check_params, require
from quire.structured_outputs import StructuredOutputsParams
from quire.v1 import sampling_pb2

SMALLEST_TEMPERATURE = 0.01
"""A temperature between 0 and this counts as this: below, scores of float32 lose the noise."""

LARGEST_LOGIT_BIAS = 100.0
_SEQUENCES = ("stop", "stop_token_ids", "bad_words")


class RequestOutputKind(IntEnum):
    """What each message of a stream of outputs holds."""

    CUMULATIVE = 0
    """Everything so far."""
    DELTA = 1
    """What is new."""
    FINAL_ONLY = 2
    """Everything, once, at the end."""


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

    None is unset: where a field says so the model's own default is taken when the request is resolved. Lists are
    taken for tuples, and one string for a tuple of it.
    """

    n: int = 1
    """Sequences drawn for the prompt."""
    temperature: float | None = 1.0
    """0 is greedy; None takes the model's."""
    top_p: float | None = 1.0
    """Keeps the likeliest tokens that add up to it; None takes the model's."""
    top_k: int | None = 0
    """Keeps so many; 0 or -1 keeps all, None takes the model's."""
    min_p: float | None = 0.0
    """Keeps what is at least so many times as likely as the likeliest; None takes the model's."""
    seed: int | None = None
    """None or -1 draws one."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the output holds."""
    frequency_penalty: float = 0.0
    """Taken off once for each time that the output holds the token."""
    repetition_penalty: float | None = 1.0
    """Divides the positive and multiplies the negative logits of tokens that prompt or output hold; None takes the
    model's."""
    max_tokens: int | None = 16
    """Most tokens per sequence; capped by what the context leaves after the prompt, which None takes."""
    min_tokens: int = 0
    """Tokens before a stop string, a stop token or an end of sequence may end it."""
    stop: Sequence[str] = ()
    """Strings, or one, that end a sequence when its text holds them."""
    stop_token_ids: Sequence[int] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    bad_words: Sequence[str] = ()
    """Texts that the output must not hold; see quire.v1.SamplingParams."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of tokens; at most 100 either way counts."""
    allowed_token_ids: Sequence[int] | None = None
    """The only tokens that can be drawn. Where `bad_words`, and `min_tokens` for those that would end the output, leave
    none of them, the request is refused, or ends with an error as soon as that comes about."""
    logprobs: int | None = None
    """Alternatives per token; 0 reports the drawn token alone. The whole vocabulary (-1) is more than is reported."""
    prompt_logprobs: int | None = None
    """The same for each token of the prompt."""
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    """Keeps so many of the prompt's last tokens; -1 as many as fit."""
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        for name in _SEQUENCES:
            self._set(name, _tuple(getattr(self, name)))
        if self.allowed_token_ids is not None:
            self._set("allowed_token_ids", _tuple(self.allowed_token_ids))
        if self.logit_bias is not None:
            self._set("logit_bias", {_token(token): _bias(bias) for token, bias in self.logit_bias.items()})
        if self.seed == -1:
            self._set("seed", None)
        self._set("output_kind", RequestOutputKind(self.output_kind))
        check_params(self)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def from_proto(cls, message: sampling_pb2.SamplingParams) -> "SamplingParams":
        """The parameters of a message. What it leaves unset is None, and its outputs are deltas."""
        values: dict[str, Any] = {
            **_UNSET,
            **{descriptor.name: getattr(message, descriptor.name) for descriptor, _ in message.ListFields()},
        }
        if "logit_bias" in values:
            values["logit_bias"] = dict(message.logit_bias)
        if "structured_outputs" in values:
            values["structured_outputs"] = StructuredOutputsParams.from_proto(message.structured_outputs)
        values["output_kind"] = _KIND_OF_MESSAGE.get(message.output_kind, RequestOutputKind.DELTA)
        return cls(**values)

    def to_proto(self) -> sampling_pb2.SamplingParams:
        """The message of these parameters; None stays unset."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        values["output_kind"] = _MESSAGE_OF_KIND[self.output_kind]
        if self.structured_outputs is not None:
            values["structured_outputs"] = self.structured_outputs.to_proto()
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
        """These parameters with every default taken, for a prompt of `prompt_len` tokens.

        `max_tokens` is capped by what the context leaves, as vLLM does. `drawn_seed` serves a request without one.
        Raises `InvalidRequest` for a token outside the vocabulary.
        """
        check_against_model(self, vocab_size=vocab_size, max_model_len=max_model_len)
        room = max_model_len - prompt_len
        max_tokens = min(room, self.max_tokens or room)
        temperature = _first(self.temperature, defaults.temperature, 1.0)
        return replace(
            self,
            temperature=max(temperature, SMALLEST_TEMPERATURE) if temperature else 0.0,
            top_p=_first(self.top_p, defaults.top_p, 1.0),
            top_k=max(0, int(_first(self.top_k, defaults.top_k, 0))),
            min_p=_first(self.min_p, defaults.min_p, 0.0),
            repetition_penalty=_first(self.repetition_penalty, defaults.repetition_penalty, 1.0),
            seed=drawn_seed if self.seed is None else self.seed,
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens, max_tokens),
        )

    def prompt_room(self, max_model_len: int) -> int | None:
        """How many of the prompt's last tokens are kept; None keeps all."""
        if self.truncate_prompt_tokens == -1:
            return max(1, max_model_len - 1)
        return self.truncate_prompt_tokens


_UNSET = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"))
"""Fields of which the class has a default of its own, where a message that leaves them out asks for the model's."""

_MESSAGE_OF_KIND = {
    RequestOutputKind.CUMULATIVE: sampling_pb2.REQUEST_OUTPUT_KIND_CUMULATIVE,
    RequestOutputKind.DELTA: sampling_pb2.REQUEST_OUTPUT_KIND_DELTA,
    RequestOutputKind.FINAL_ONLY: sampling_pb2.REQUEST_OUTPUT_KIND_FINAL_ONLY,
}
_KIND_OF_MESSAGE = {message: kind for kind, message in _MESSAGE_OF_KIND.items()}


def _tuple(values: Iterable[Any] | str | None) -> tuple[Any, ...]:
    return () if values is None else (values,) if isinstance(values, str) else tuple(values)


def _token(key: object) -> object:
    """A JSON object names tokens by strings; what is no number is left for the rules to refuse."""
    return int(key) if isinstance(key, str) and key.isdecimal() else key


def _bias(value: object) -> float:
    require(isinstance(value, int | float), "logit_bias", repr(value), "a bias must be a number")
    bias = float(value)  # pyright: ignore[reportArgumentType]
    return max(-LARGEST_LOGIT_BIAS, min(LARGEST_LOGIT_BIAS, bias)) if abs(bias) < float("inf") else bias


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
