"""What a token-level request becomes in the core."""

from quire_scheduler.admission import build_request
from quire_scheduler.core import OwnerId

from quire.sampling_params import SamplingParams
from quire.v1 import scheduler_pb2

_STATE = scheduler_pb2.ServingState(model="m", max_model_len=64, vocab_size=100, max_num_seqs=1)


def _salt(**fields: str) -> bytes:
    admission = scheduler_pb2.Admission(
        request_id="r", prompt_token_ids=[1, 2], sampling_params=SamplingParams().to_proto(), **fields
    )
    return build_request(admission, OwnerId(1), _STATE).cache_salt


def test_tenants_and_adapters_share_no_cached_prefix() -> None:
    salts = [
        _salt(),
        _salt(tenant="a"),
        _salt(tenant="b"),
        _salt(adapter_id="a"),
        _salt(tenant="a", adapter_id="b"),
    ]
    assert len(set(salts)) == len(salts)
    assert _salt(tenant="a") == _salt(tenant="a")
