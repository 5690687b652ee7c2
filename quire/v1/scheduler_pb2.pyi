from quire.v1 import beam_search_pb2 as _beam_search_pb2
from quire.v1 import generation_pb2 as _generation_pb2
from quire.v1 import sampling_pb2 as _sampling_pb2
from quire.v1 import tokenizer_pb2 as _tokenizer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AttachRequest(_message.Message):
    __slots__ = ("hello", "submit", "frame_number")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    hello: AttachHello
    submit: SubmitFrame
    frame_number: int
    def __init__(self, hello: _Optional[_Union[AttachHello, _Mapping]] = ..., submit: _Optional[_Union[SubmitFrame, _Mapping]] = ..., frame_number: _Optional[int] = ...) -> None: ...

class AttachHello(_message.Message):
    __slots__ = ("protocol_version", "peer_id")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    peer_id: str
    def __init__(self, protocol_version: _Optional[int] = ..., peer_id: _Optional[str] = ...) -> None: ...

class SubmitFrame(_message.Message):
    __slots__ = ("admissions", "abort_handles", "abort_indexes")
    ADMISSIONS_FIELD_NUMBER: _ClassVar[int]
    ABORT_HANDLES_FIELD_NUMBER: _ClassVar[int]
    ABORT_INDEXES_FIELD_NUMBER: _ClassVar[int]
    admissions: _containers.RepeatedCompositeFieldContainer[Admission]
    abort_handles: _containers.RepeatedScalarFieldContainer[int]
    abort_indexes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, admissions: _Optional[_Iterable[_Union[Admission, _Mapping]]] = ..., abort_handles: _Optional[_Iterable[int]] = ..., abort_indexes: _Optional[_Iterable[int]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("handle", "request_id", "tenant", "prompt_token_ids", "sampling_params", "priority", "resumed", "traceparent", "deadline_ms", "adapter_id", "bad_words_token_ids", "beam_search_params")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_ID_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BEAM_SEARCH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    request_id: str
    tenant: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling_params: _sampling_pb2.SamplingParams
    priority: int
    resumed: _containers.RepeatedCompositeFieldContainer[ResumedSequence]
    traceparent: str
    deadline_ms: int
    adapter_id: str
    bad_words_token_ids: _containers.RepeatedCompositeFieldContainer[_tokenizer_pb2.TokenIds]
    beam_search_params: _beam_search_pb2.BeamSearchParams
    def __init__(self, handle: _Optional[int] = ..., request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling_params: _Optional[_Union[_sampling_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., resumed: _Optional[_Iterable[_Union[ResumedSequence, _Mapping]]] = ..., traceparent: _Optional[str] = ..., deadline_ms: _Optional[int] = ..., adapter_id: _Optional[str] = ..., bad_words_token_ids: _Optional[_Iterable[_Union[_tokenizer_pb2.TokenIds, _Mapping]]] = ..., beam_search_params: _Optional[_Union[_beam_search_pb2.BeamSearchParams, _Mapping]] = ...) -> None: ...

class ResumedSequence(_message.Message):
    __slots__ = ("index", "token_ids")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class AttachResponse(_message.Message):
    __slots__ = ("welcome", "tokens", "state", "frame_number")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FRAME_NUMBER_FIELD_NUMBER: _ClassVar[int]
    welcome: AttachWelcome
    tokens: TokenFrame
    state: ServingState
    frame_number: int
    def __init__(self, welcome: _Optional[_Union[AttachWelcome, _Mapping]] = ..., tokens: _Optional[_Union[TokenFrame, _Mapping]] = ..., state: _Optional[_Union[ServingState, _Mapping]] = ..., frame_number: _Optional[int] = ...) -> None: ...

class AttachWelcome(_message.Message):
    __slots__ = ("protocol_version", "scheduler_id", "state", "max_num_requests")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    scheduler_id: str
    state: ServingState
    max_num_requests: int
    def __init__(self, protocol_version: _Optional[int] = ..., scheduler_id: _Optional[str] = ..., state: _Optional[_Union[ServingState, _Mapping]] = ..., max_num_requests: _Optional[int] = ...) -> None: ...

class ServingState(_message.Message):
    __slots__ = ("ready", "served_model_names", "max_model_len", "vocab_size", "eos_token_ids", "max_num_seqs", "draining", "model", "revision")
    READY_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_NAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    EOS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    served_model_names: _containers.RepeatedScalarFieldContainer[str]
    max_model_len: int
    vocab_size: int
    eos_token_ids: _containers.RepeatedScalarFieldContainer[int]
    max_num_seqs: int
    draining: bool
    model: str
    revision: str
    def __init__(self, ready: _Optional[bool] = ..., served_model_names: _Optional[_Iterable[str]] = ..., max_model_len: _Optional[int] = ..., vocab_size: _Optional[int] = ..., eos_token_ids: _Optional[_Iterable[int]] = ..., max_num_seqs: _Optional[int] = ..., draining: _Optional[bool] = ..., model: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class TokenFrame(_message.Message):
    __slots__ = ("step_id", "handles", "indexes", "first_token_indexes", "num_tokens", "token_ids", "finished_rows", "finish_reasons", "stop_token_ids_plus_one", "cached_handles", "cached_tokens", "logprobs", "errors", "prompt_logprobs", "beam_rows", "beam_logprobs", "beam_scores")
    STEP_ID_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    INDEXES_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEXES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_ROWS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASONS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_PLUS_ONE_FIELD_NUMBER: _ClassVar[int]
    CACHED_HANDLES_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BEAM_ROWS_FIELD_NUMBER: _ClassVar[int]
    BEAM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    BEAM_SCORES_FIELD_NUMBER: _ClassVar[int]
    step_id: int
    handles: _containers.RepeatedScalarFieldContainer[int]
    indexes: _containers.RepeatedScalarFieldContainer[int]
    first_token_indexes: _containers.RepeatedScalarFieldContainer[int]
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finished_rows: _containers.RepeatedScalarFieldContainer[int]
    finish_reasons: _containers.RepeatedScalarFieldContainer[_generation_pb2.FinishReason]
    stop_token_ids_plus_one: _containers.RepeatedScalarFieldContainer[int]
    cached_handles: _containers.RepeatedScalarFieldContainer[int]
    cached_tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: LogprobColumns
    errors: _containers.RepeatedCompositeFieldContainer[RequestError]
    prompt_logprobs: PromptLogprobColumns
    beam_rows: _containers.RepeatedScalarFieldContainer[int]
    beam_logprobs: _containers.RepeatedScalarFieldContainer[float]
    beam_scores: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, step_id: _Optional[int] = ..., handles: _Optional[_Iterable[int]] = ..., indexes: _Optional[_Iterable[int]] = ..., first_token_indexes: _Optional[_Iterable[int]] = ..., num_tokens: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., finished_rows: _Optional[_Iterable[int]] = ..., finish_reasons: _Optional[_Iterable[_Union[_generation_pb2.FinishReason, str]]] = ..., stop_token_ids_plus_one: _Optional[_Iterable[int]] = ..., cached_handles: _Optional[_Iterable[int]] = ..., cached_tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Union[LogprobColumns, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[RequestError, _Mapping]]] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobColumns, _Mapping]] = ..., beam_rows: _Optional[_Iterable[int]] = ..., beam_logprobs: _Optional[_Iterable[float]] = ..., beam_scores: _Optional[_Iterable[float]] = ...) -> None: ...

class LogprobColumns(_message.Message):
    __slots__ = ("entries_per_token", "token_ids", "values", "ranks")
    ENTRIES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    entries_per_token: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, entries_per_token: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class PromptLogprobColumns(_message.Message):
    __slots__ = ("handles", "first_positions", "num_tokens", "entries_per_token", "token_ids", "values", "ranks")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    first_positions: _containers.RepeatedScalarFieldContainer[int]
    num_tokens: _containers.RepeatedScalarFieldContainer[int]
    entries_per_token: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    ranks: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., first_positions: _Optional[_Iterable[int]] = ..., num_tokens: _Optional[_Iterable[int]] = ..., entries_per_token: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ..., values: _Optional[_Iterable[float]] = ..., ranks: _Optional[_Iterable[int]] = ...) -> None: ...

class RequestError(_message.Message):
    __slots__ = ("handle", "code", "message", "field", "retry_after_ms")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    handle: int
    code: int
    message: str
    field: str
    retry_after_ms: int
    def __init__(self, handle: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class SchedulerServiceGenerateRequest(_message.Message):
    __slots__ = ("request_id", "model", "prompt_token_ids", "sampling_params", "priority", "tenant", "bad_words_token_ids", "beam_search_params")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PARAMS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BAD_WORDS_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    BEAM_SEARCH_PARAMS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling_params: _sampling_pb2.SamplingParams
    priority: int
    tenant: str
    bad_words_token_ids: _containers.RepeatedCompositeFieldContainer[_tokenizer_pb2.TokenIds]
    beam_search_params: _beam_search_pb2.BeamSearchParams
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling_params: _Optional[_Union[_sampling_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., tenant: _Optional[str] = ..., bad_words_token_ids: _Optional[_Iterable[_Union[_tokenizer_pb2.TokenIds, _Mapping]]] = ..., beam_search_params: _Optional[_Union[_beam_search_pb2.BeamSearchParams, _Mapping]] = ...) -> None: ...

class SchedulerServiceGenerateResponse(_message.Message):
    __slots__ = ("request_id", "outputs", "usage", "prompt_logprobs")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    outputs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.CompletionDelta]
    usage: _generation_pb2.Usage
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_generation_pb2.TokenLogprobs]
    def __init__(self, request_id: _Optional[str] = ..., outputs: _Optional[_Iterable[_Union[_generation_pb2.CompletionDelta, _Mapping]]] = ..., usage: _Optional[_Union[_generation_pb2.Usage, _Mapping]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_generation_pb2.TokenLogprobs, _Mapping]]] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_ids", "tenant")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    tenant: str
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., tenant: _Optional[str] = ...) -> None: ...

class AbortResponse(_message.Message):
    __slots__ = ("num_aborted",)
    NUM_ABORTED_FIELD_NUMBER: _ClassVar[int]
    num_aborted: int
    def __init__(self, num_aborted: _Optional[int] = ...) -> None: ...

class GetStatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatsResponse(_message.Message):
    __slots__ = ("num_running", "num_waiting", "num_requests", "num_total_blocks", "num_free_blocks", "num_used_blocks", "num_cached_blocks", "num_steps", "num_preemptions", "num_prefix_hit_tokens", "num_prefix_query_tokens", "num_generated_tokens", "num_prefill_tokens", "num_worker_groups", "kv_waste_ratio", "num_overlapped_steps", "num_group_resets", "block_size", "num_running_beams")
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_HIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFIX_QUERY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFILL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKER_GROUPS_FIELD_NUMBER: _ClassVar[int]
    KV_WASTE_RATIO_FIELD_NUMBER: _ClassVar[int]
    NUM_OVERLAPPED_STEPS_FIELD_NUMBER: _ClassVar[int]
    NUM_GROUP_RESETS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_BEAMS_FIELD_NUMBER: _ClassVar[int]
    num_running: int
    num_waiting: int
    num_requests: int
    num_total_blocks: int
    num_free_blocks: int
    num_used_blocks: int
    num_cached_blocks: int
    num_steps: int
    num_preemptions: int
    num_prefix_hit_tokens: int
    num_prefix_query_tokens: int
    num_generated_tokens: int
    num_prefill_tokens: int
    num_worker_groups: int
    kv_waste_ratio: float
    num_overlapped_steps: int
    num_group_resets: int
    block_size: int
    num_running_beams: int
    def __init__(self, num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_requests: _Optional[int] = ..., num_total_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., num_used_blocks: _Optional[int] = ..., num_cached_blocks: _Optional[int] = ..., num_steps: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_prefix_hit_tokens: _Optional[int] = ..., num_prefix_query_tokens: _Optional[int] = ..., num_generated_tokens: _Optional[int] = ..., num_prefill_tokens: _Optional[int] = ..., num_worker_groups: _Optional[int] = ..., kv_waste_ratio: _Optional[float] = ..., num_overlapped_steps: _Optional[int] = ..., num_group_resets: _Optional[int] = ..., block_size: _Optional[int] = ..., num_running_beams: _Optional[int] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_ms",)
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    timeout_ms: int
    def __init__(self, timeout_ms: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("num_remaining",)
    NUM_REMAINING_FIELD_NUMBER: _ClassVar[int]
    num_remaining: int
    def __init__(self, num_remaining: _Optional[int] = ...) -> None: ...
