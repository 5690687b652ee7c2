"""From the wire to the core: checks what a token-level request may say, in one place, and builds it.

Every rule names the field, the value and itself. Knows the serving state, but no stream and no queue.
"""

from quire.errors import InvalidRequest, Overloaded, QuireError, Unavailable
from quire.sampling_params import ModelDefaults, SamplingParams
from quire.sampling_rules import check_bad_words, check_draws, require
from quire.structured_outputs import MAX_CONSTRAINT_BYTES
from quire.v1 import sampling_pb2, scheduler_pb2
from quire_scheduler.beam_admission import beam_search_of
from quire_scheduler.core import OwnerId, Request, Sampling, token_ids_of

_RETRY_AFTER_MS = 1000
_MAX_REQUEST_ID_BYTES = 256


def build_request(
    admission: scheduler_pb2.Admission, owner: OwnerId, state: scheduler_pb2.ServingState
) -> Request:
    """The core's request for an admission. Raises a `QuireError` that names the rule it breaks."""
    _check_state(state)
    prompt = admission.prompt_token_ids[:]
    _check_prompt(prompt, state)
    beam_params = None
    if admission.HasField("beam_search_params"):
        sampling, beam_params = beam_search_of(admission, state)
    else:
        sampling = _sampling(admission, len(prompt), state)
    if len(admission.request_id.encode()) > _MAX_REQUEST_ID_BYTES:
        raise InvalidRequest(
            f"request_id has {len(admission.request_id.encode())} bytes; at most {_MAX_REQUEST_ID_BYTES} are allowed",
            field="request_id",
        )
    resumed = tuple((sequence.index, list(sequence.token_ids)) for sequence in admission.resumed)
    _check_resumed(resumed, sampling, state)
    return Request(
        owner=owner,
        handle=admission.handle,
        request_id=admission.request_id,
        tenant=admission.tenant,
        prompt_token_ids=token_ids_of(prompt),
        sampling=sampling,
        priority=admission.priority,
        resumed=resumed,
        beam_params=beam_params,
        cache_salt=f"{admission.tenant}\0{admission.adapter_id}".encode(),
    )


def name_of(state: scheduler_pb2.ServingState) -> str:
    """The name under which clients know the served model."""
    return state.served_model_names[0] if state.served_model_names else state.model


def _check_state(state: scheduler_pb2.ServingState) -> None:
    if state.draining:
        raise Unavailable(
            "this scheduler is draining; another one may serve the request", retry_after_ms=_RETRY_AFTER_MS
        )
    if not state.max_model_len:
        raise Unavailable("no worker has registered yet", retry_after_ms=_RETRY_AFTER_MS)


def _check_prompt(prompt: list[int], state: scheduler_pb2.ServingState) -> None:
    if not prompt:
        raise InvalidRequest("prompt is empty: it needs at least one token", field="prompt")
    if max(prompt) >= state.vocab_size:
        raise InvalidRequest(
            f"prompt holds token id {max(prompt)}: ids must be below the vocabulary size {state.vocab_size}",
            field="prompt",
        )
    if len(prompt) >= state.max_model_len:
        raise InvalidRequest(
            f"prompt has {len(prompt)} tokens: with at least one to generate it must have fewer than "
            f"max_model_len={state.max_model_len}",
            field="prompt",
        )


def _check_resumed(
    resumed: tuple[tuple[int, list[int]], ...], sampling: Sampling, state: scheduler_pb2.ServingState
) -> None:
    indexes = [index for index, _tokens in resumed]
    if len(set(indexes)) != len(indexes) or any(index >= sampling.n for index in indexes):
        raise InvalidRequest(
            f"resumed names indexes {indexes}: they must differ and be below n={sampling.n}", field="resumed"
        )
    for index, tokens in resumed:
        if tokens and max(tokens) >= state.vocab_size:
            raise InvalidRequest(
                f"resumed[{index}] holds token id {max(tokens)}: ids must be below {state.vocab_size}",
                field="resumed",
            )


def _sampling(
    admission: scheduler_pb2.Admission, prompt_len: int, state: scheduler_pb2.ServingState
) -> Sampling:
    """Resolved here for clients that have no front door; what one has resolved stays as it is."""
    params = SamplingParams.from_proto(admission.sampling_params).resolve(
        ModelDefaults(),
        prompt_len=prompt_len,
        max_model_len=state.max_model_len,
        vocab_size=state.vocab_size,
        drawn_seed=0,
    )
    require(
        params.n <= state.max_num_seqs, "n", params.n, f"must be at most max_num_seqs={state.max_num_seqs}"
    )
    bad_words = tuple(tuple(word.ids) for word in admission.bad_words_token_ids)
    check_bad_words(bad_words, state.vocab_size)
    check_draws(params, bad_words, state.eos_token_ids)
    eos = () if params.ignore_eos else tuple(state.eos_token_ids)
    return Sampling(
        n=params.n,
        temperature=params.temperature or 0.0,
        top_p=_set(params.top_p),
        top_k=int(_set(params.top_k)),
        min_p=_set(params.min_p),
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=_set(params.repetition_penalty),
        seed=int(_set(params.seed)),
        max_tokens=int(_set(params.max_tokens)),
        min_tokens=params.min_tokens,
        stop_token_ids=(*eos, *params.stop_token_ids),
        eos_token_ids=frozenset(eos),
        num_logprobs=-1 if params.logprobs is None else params.logprobs,
        num_prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        logit_bias=tuple((params.logit_bias or {}).items()),
        allowed_token_ids=tuple(params.allowed_token_ids or ()),
        bad_words=bad_words,
        grammar=_grammar(admission.sampling_params),
    )


def _set(value: float | None) -> float:
    assert value is not None, "resolved parameters have every default"
    return value


def _grammar(params: sampling_pb2.SamplingParams) -> bytes:
    """The constraint as it came: workers compile it."""
    if not params.HasField("structured_outputs"):
        return b""
    num_bytes = params.structured_outputs.ByteSize()
    limit = 2 * MAX_CONSTRAINT_BYTES  # each of many choices has its length beside it
    require(num_bytes <= limit, "structured_outputs", f"{num_bytes} bytes", f"at most {limit}")
    return params.structured_outputs.SerializeToString()


def overloaded(num_requests: int, limit: int) -> QuireError:
    """The answer to one request too many from one peer."""
    return Overloaded(
        f"{num_requests} requests of this peer are live, at most {limit} are allowed",
        retry_after_ms=_RETRY_AFTER_MS,
    )
