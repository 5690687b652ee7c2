"""When a prefill may read before the launch ahead of it has ended."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from quire_kernels.attention import paged


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize("is_given", [True, False])
def test_a_schedule_that_is_made_for_one_layer_is_not_settled(
    settled: bool, is_given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def attend(*_tensors: Any, **options: Any) -> None:
        seen.append(options["settled"])

    def make(*_arguments: Any) -> Any:
        return schedule

    schedule: Any = SimpleNamespace(sliding_window=None, config=SimpleNamespace(hopper=True, shortest=1))
    monkeypatch.setattr(paged, "_hopper", lambda: SimpleNamespace(paged_attention_prefill_hopper=attend))
    monkeypatch.setattr(paged, "_schedule_for_one_layer", make)
    cache = torch.zeros(2, 16, 1, 16)
    places = torch.tensor([[1]], dtype=torch.int32)
    paged.paged_attention_mixed(
        torch.zeros(2, 1, 16), cache, cache, places, torch.tensor([0, 2], dtype=torch.int32),
        torch.tensor([2], dtype=torch.int32), scale=0.25, sliding_window=None, max_query_len=2, max_seq_len=2,
        schedule=schedule if is_given else None, settled=settled,
    )  # fmt: skip
    assert seen == [settled and is_given]
