"""BeamSearchParams: how beam search continues a prompt. Names and defaults are vLLM's, scores those of transformers.

The one place where they are validated: every message names the field, the value and the rule.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from quire.sampling_params import SMALLEST_TEMPERATURE, SamplingParams
from quire.sampling_rules import require
from quire.v1 import beam_search_pb2

EarlyStopping = bool | Literal["never"]

_FLAGS = ("ignore_eos", "include_stop_str_in_output")


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearchParams:
    """Parameters of one beam search. Raises `InvalidRequest` when made with values that break a rule."""

    beam_width: int
    """Beams kept and hypotheses returned, best first."""
    max_tokens: int | None = None
    """Most tokens per beam; capped by what the context leaves after the prompt, which None takes."""
    ignore_eos: bool = False
    temperature: float = 0.0
    """Divides the logits before log-probabilities are taken of them; 0 leaves them as they are, as 1 does."""
    length_penalty: float = 1.0
    """A hypothesis scores its log-probability over its number of tokens to this power."""
    include_stop_str_in_output: bool = False
    """Whether the text includes that of the end-of-sequence token, which is always among the token ids."""
    early_stopping: EarlyStopping = False
    """As in transformers, once there are `beam_width` hypotheses: True ends the search, False when the best running beam, at
    its present length, scores no better than the worst of them, "never" when none could even at full length."""

    def __post_init__(self) -> None:
        self._check_types()
        require(self.beam_width >= 1, "beam_width", self.beam_width, "must be at least 1")
        if self.max_tokens is not None:
            require(self.max_tokens >= 1, "max_tokens", self.max_tokens, "must be at least 1")
        require(
            0 <= self.temperature < math.inf, "temperature", self.temperature, "must be at least 0 and finite"
        )
        require(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "must be finite")
        # Lengths to a higher power overflow; such a score would say nothing anyway.
        require(
            -10 <= self.length_penalty <= 10, "length_penalty", self.length_penalty, "must be from -10 to 10"
        )
        require(
            self.early_stopping in (True, False, "never"),
            "early_stopping",
            repr(self.early_stopping),
            "must be True, False or 'never'",
        )

    @classmethod
    def from_proto(cls, message: beam_search_pb2.BeamSearchParams) -> "BeamSearchParams":
        """The parameters of a message; unset fields take their defaults."""
        require(
            message.HasField("beam_width"), "beam_width", "unset", "a beam search must say how many beams"
        )
        values: dict[str, Any] = {
            descriptor.name: getattr(message, descriptor.name) for descriptor, _ in message.ListFields()
        }
        number = values.pop("early_stopping", beam_search_pb2.BEAM_EARLY_STOPPING_HEURISTIC)
        require(number in _STOPPING_OF_MESSAGE, "early_stopping", number, "must be a BeamEarlyStopping")
        return cls(early_stopping=_STOPPING_OF_MESSAGE[number], **values)

    def to_proto(self) -> beam_search_pb2.BeamSearchParams:
        """The message of these parameters."""
        values: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        values["early_stopping"] = _MESSAGE_OF_STOPPING[self.early_stopping]
        return beam_search_pb2.BeamSearchParams(
            **{name: value for name, value in values.items() if value is not None}
        )

    def resolve(
        self,
        *,
        prompt_len: int,
        max_model_len: int,
        max_num_seqs: int,
        vocab_size: int,
        eos_token_ids: Iterable[int],
    ) -> "BeamSearchParams":
        """These parameters as they count, `max_tokens` set, for a prompt of `prompt_len` tokens. Raises `InvalidRequest` for more
        beams than can run, or than the vocabulary can tell apart.
        """
        require(
            self.beam_width <= max_num_seqs,
            "beam_width",
            self.beam_width,
            f"must be at most max_num_seqs={max_num_seqs}",
        )
        num_eos = 0 if self.ignore_eos else len(set(eos_token_ids))
        widest = vocab_size // max(2, 1 + num_eos)
        require(
            self.beam_width <= widest,
            "beam_width",
            self.beam_width,
            f"must be at most {widest} for a vocabulary of {vocab_size} with {num_eos} end-of-sequence tokens",
        )
        room = max(1, max_model_len - prompt_len)
        return replace(
            self,
            max_tokens=min(room, self.max_tokens or room),
            temperature=max(self.temperature, SMALLEST_TEMPERATURE) if self.temperature else 0.0,
        )

    def text_params(self) -> SamplingParams:
        """What of it decides how a found beam becomes text, as the sampling parameters of as many sequences."""
        return SamplingParams(
            n=self.beam_width,
            max_tokens=self.max_tokens,
            ignore_eos=self.ignore_eos,
            include_stop_str_in_output=self.include_stop_str_in_output,
        )

    def _check_types(self) -> None:
        for name in ("beam_width", "max_tokens"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(
                whole or (name == "max_tokens" and value is None), name, repr(value), "must be an integer"
            )
        for name in ("temperature", "length_penalty"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            require(number, name, repr(value), "must be a number")
        for name in _FLAGS:
            value = getattr(self, name)
            require(isinstance(value, bool), name, repr(value), "must be true or false")


_MESSAGE_OF_STOPPING: dict[EarlyStopping, beam_search_pb2.BeamEarlyStopping] = {
    False: beam_search_pb2.BEAM_EARLY_STOPPING_HEURISTIC,
    True: beam_search_pb2.BEAM_EARLY_STOPPING_FIRST,
    "never": beam_search_pb2.BEAM_EARLY_STOPPING_NEVER,
}
_STOPPING_OF_MESSAGE: dict[int, EarlyStopping] = {
    message: stopping for stopping, message in _MESSAGE_OF_STOPPING.items()
}
