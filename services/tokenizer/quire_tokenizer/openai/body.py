"""What the bodies of completions and chat completions have in common: OpenAI's sampling fields and vLLM's extra ones.

Checks types alone; values are checked where all faces have theirs checked, in `SamplingParams`.
"""

import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quire.beam_search_params import BeamSearchParams
from quire.errors import InvalidRequest
from quire.sampling_params import RequestOutputKind, SamplingParams
from quire.v1 import generation_pb2
from quire_tokenizer.openai.constraint import ResponseFormat, constraint_of

logger = logging.getLogger(__name__)

Text = Annotated[str, Field(strict=True)]
TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]

_SAMPLING_FIELDS = frozenset(each.name for each in fields(SamplingParams))
_BEAM_FIELDS = frozenset(each.name for each in fields(BeamSearchParams))
_MODELS_OWN = frozenset(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
"""Unset, these take what the model was made for."""

_MAX_NAMES_WARNED_OF = 1000
_warned_of: set[str] = set()


class StreamOptions(BaseModel):
    """What a stream carries beside text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(BaseModel):
    """Fields of both endpoints. A field that is not known is ignored with a warning."""

    model_config = ConfigDict(extra="allow")

    model: Text = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    bad_words: list[Text] | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | Text | None = None
    guided_regex: Text | None = None
    guided_choice: list[Text] | None = None
    guided_grammar: Text | None = None
    use_beam_search: bool = False
    """Searches for the n likeliest continuations instead of drawing n."""
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    request_id: Text | None = None
    user: str | None = None
    return_tokens_as_token_ids: bool = False
    return_token_ids: bool = False

    @model_validator(mode="after")
    def _warn_of_unknown_fields(self) -> "Body":
        for name in self.model_extra or ():
            if name not in _warned_of and len(_warned_of) < _MAX_NAMES_WARNED_OF:
                _warned_of.add(name)
                logger.warning(
                    "a request has a field that is not known; it is ignored", extra={"field": name[:80]}
                )
        return self

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def generate_request(self, **sampling: Any) -> generation_pb2.GenerateRequest:
        """The request but for its prompt; `sampling` are further parameters. Raises `InvalidRequest`."""
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequest(
                f"prompt_logprobs={self.prompt_logprobs}: not available with stream=true",
                field="prompt_logprobs",
            )
        request = generation_pb2.GenerateRequest(model=self.model, priority=self.priority)
        if self.use_beam_search:
            request.beam_search_params.CopyFrom(self._beam_search_params(sampling).to_proto())
        else:
            request.sampling_params.CopyFrom(self._sampling_params(sampling).to_proto())
        return request

    def _sampling_params(self, sampling: Mapping[str, Any]) -> SamplingParams:
        values: dict[str, Any] = {
            name: value
            for name, value in self.__dict__.items()
            if name in _SAMPLING_FIELDS and (value is not None or name in _MODELS_OWN)
        }
        kind = RequestOutputKind.DELTA if self.stream else RequestOutputKind.FINAL_ONLY
        values |= {"structured_outputs": constraint_of(self), "output_kind": kind, **sampling}
        return SamplingParams(**values)

    def _beam_search_params(self, sampling: Mapping[str, Any]) -> BeamSearchParams:
        """Raises `InvalidRequest` for what a search, which draws nothing, would have to ignore."""
        given = {name: value for name, value in self._given().items() if name in _SAMPLING_FIELDS}
        given |= {name: value for name, value in sampling.items() if value is not None}
        width = given.pop("n", 1)
        if constraint_of(self) is not None:
            given["structured_outputs"] = "set"
        for name, value in given.items():
            if name not in _BEAM_FIELDS:
                raise InvalidRequest(f"{name}={value}: has no meaning for use_beam_search=true", field=name)
        values = {name: value for name, value in self._given().items() if name in _BEAM_FIELDS}
        return BeamSearchParams(beam_width=width, **{**values, **given})

    def _given(self) -> dict[str, Any]:
        """What the client said."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name in self.model_fields_set and value is not None
        }
