"""From the wire to the core for beam searches: what `admission` is for requests that draw. Knows no stream and no queue."""

from quire.beam_search_params import BeamSearchParams
from quire.errors import InvalidRequest
from quire.v1 import scheduler_pb2
from quire_scheduler.core import BeamParams, Sampling


def beam_search_of(
    admission: scheduler_pb2.Admission, state: scheduler_pb2.ServingState
) -> tuple[Sampling, BeamParams]:
    """What the core must know of an admitted beam search. Raises `InvalidRequest`."""
    if admission.HasField("sampling_params"):
        raise InvalidRequest(
            "sampling_params: a beam search draws nothing; set it or beam_search_params, not both",
            field="sampling_params",
        )
    if admission.resumed:
        raise InvalidRequest(
            f"resumed names {len(admission.resumed)} sequences: a beam search tells nothing before its end, and starts "
            "over",
            field="resumed",
        )
    params = BeamSearchParams.from_proto(admission.beam_search_params).resolve(
        prompt_len=len(admission.prompt_token_ids),
        max_model_len=state.max_model_len,
        max_num_seqs=state.max_num_seqs,
        vocab_size=state.vocab_size,
        eos_token_ids=state.eos_token_ids,
    )
    assert params.max_tokens is not None, "resolved"
    eos = () if params.ignore_eos else tuple(state.eos_token_ids)
    sampling = Sampling(
        n=params.beam_width,
        max_tokens=params.max_tokens,
        temperature=params.temperature or 1.0,
        stop_token_ids=eos,
        eos_token_ids=frozenset(eos),
    )
    beams = BeamParams(
        beam_width=params.beam_width,
        length_penalty=params.length_penalty,
        early_stopping=params.early_stopping,
    )
    return sampling, beams
