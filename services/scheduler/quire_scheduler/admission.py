"""From the wire to the core: checks what a token-level request may say, in one place, and builds it.

Every rule names the field, the value and itself. Knows the serving state, but no stream and no queue.
"""

from quire.errors import InvalidRequest, Overloaded, QuireError, Unavailable
from quire.structured_outputs import MAX_CONSTRAINT_BYTES
from quire.v1 import sampling_pb2, scheduler_pb2
from quire_scheduler.beam_admission import beam_search_of
from quire_scheduler.core import OwnerId, Request, Sampling, TokenIds, token_ids_of

_RETRY_AFTER_MS = 1000
_MAX_REQUEST_ID_BYTES = 256
_MAX_LOGPROBS = 20


def build_request(
    admission: scheduler_pb2.Admission, owner: OwnerId, state: scheduler_pb2.ServingState
) -> Request:
    """The core's request for an admission. Raises a `QuireError` that names the rule it breaks."""
    _check_state(state)
    prompt = token_ids_of(admission.prompt_token_ids)
    beam_params = None
    if admission.HasField("beam_search_params"):
        sampling, beam_params = beam_search_of(admission, state)
    else:
        sampling = _sampling(admission.sampling_params, len(prompt), state)
    _check_prompt(prompt, state)
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
        prompt_token_ids=prompt,
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


def _check_prompt(prompt: TokenIds, state: scheduler_pb2.ServingState) -> None:
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
    params: sampling_pb2.SamplingParams, prompt_len: int, state: scheduler_pb2.ServingState
) -> Sampling:
    n = params.n if params.HasField("n") else 1
    _require(1 <= n <= state.max_num_seqs, "n", n, f"must be from 1 to max_num_seqs={state.max_num_seqs}")
    temperature = params.temperature if params.HasField("temperature") else 1.0
    _require(0 <= temperature < float("inf"), "temperature", temperature, "must be at least 0 and finite")
    top_p = params.top_p if params.HasField("top_p") else 1.0
    _require(0 < top_p <= 1, "top_p", top_p, "must be above 0 and at most 1")
    _require(params.top_k >= -1, "top_k", params.top_k, "must be at least 1, or 0 or -1 to keep all")
    _require(0 <= params.min_p <= 1, "min_p", params.min_p, "must be from 0 to 1")
    for name in ("presence_penalty", "frequency_penalty"):
        value = getattr(params, name)
        _require(-2 <= value <= 2, name, value, "must be from -2 to 2")
    repetition = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    _require(0 < repetition < float("inf"), "repetition_penalty", repetition, "must be above 0 and finite")
    room = max(1, state.max_model_len - prompt_len)
    max_tokens = params.max_tokens if params.HasField("max_tokens") else room
    _require(max_tokens >= 1, "max_tokens", max_tokens, "must be at least 1")
    max_tokens = min(max_tokens, room)
    _require(
        params.min_tokens <= max_tokens,
        "min_tokens",
        params.min_tokens,
        f"must be at most max_tokens={max_tokens}",
    )
    _require(
        params.logprobs <= _MAX_LOGPROBS, "logprobs", params.logprobs, f"must be at most {_MAX_LOGPROBS}"
    )
    eos = () if params.ignore_eos else tuple(state.eos_token_ids)
    for token in params.stop_token_ids:
        _require(
            token < state.vocab_size,
            "stop_token_ids",
            token,
            f"must be below the vocabulary size {state.vocab_size}",
        )
    return Sampling(
        n=n,
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, params.top_k),
        min_p=params.min_p,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=repetition,
        seed=params.seed,
        max_tokens=max_tokens,
        min_tokens=params.min_tokens,
        stop_token_ids=(*eos, *params.stop_token_ids),
        eos_token_ids=frozenset(eos),
        grammar=_grammar(params),
        num_logprobs=params.logprobs if params.HasField("logprobs") else -1,
    )


def _grammar(params: sampling_pb2.SamplingParams) -> bytes:
    """The constraint as it came: workers compile it."""
    if not params.HasField("structured_outputs"):
        return b""
    num_bytes = params.structured_outputs.ByteSize()
    limit = 2 * MAX_CONSTRAINT_BYTES  # each of many choices has its length beside it
    _require(num_bytes <= limit, "structured_outputs", f"{num_bytes} bytes", f"at most {limit}")
    return params.structured_outputs.SerializeToString()


def _require(condition: bool, field: str, value: object, rule: str) -> None:
    if not condition:
        raise InvalidRequest(f"{field}={value}: {rule}", field=field)


def overloaded(num_requests: int, limit: int) -> QuireError:
    """The answer to one request too many from one peer."""
    return Overloaded(
        f"{num_requests} requests of this peer are live, at most {limit} are allowed",
        retry_after_ms=_RETRY_AFTER_MS,
    )
