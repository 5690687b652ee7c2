"""What each projection of a step is told of where its heads go: no kernel that heeds it runs on a CPU."""

from pathlib import Path
from typing import Any

import pytest
from quire_kernels import HeadPlaces
from quire_worker.model import decoder
from quire_worker.step_shape import StepShape
from torch import Tensor

from tests.worker.tiny_model import make_tiny_model, step_over

NUM_LAYERS = 2


@pytest.mark.parametrize(
    ("family", "is_decode", "told"),
    [("llama", False, True), ("llama", True, False), ("qwen3", False, False)],
    ids=["prompts", "decoding", "norms of heads"],
)
def test_projections_are_told_of_their_layers_cache_where_nothing_else_writes_it(
    family: str, is_decode: bool, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(tmp_path, family)
    step = step_over(tmp_path, num_layers=NUM_LAYERS)
    places: list[HeadPlaces | None] = []
    project_heads, between_attentions = decoder.project_heads, decoder.between_attentions

    def note_first(
        x: Tensor, weight: Tensor, bias: Tensor | None, of_layer: HeadPlaces | None, *, eps: float
    ) -> Tensor:
        places.append(of_layer)
        return project_heads(x, weight, bias, of_layer, eps=eps)

    def note_next(*operands: Tensor, **rest: Any) -> Tensor:
        places.append(rest["places"])
        return between_attentions(*operands, **rest)

    monkeypatch.setattr(decoder, "project_heads", note_first)
    monkeypatch.setattr(decoder, "between_attentions", note_next)
    shape = StepShape(4 if is_decode else 64, 4, is_decode, 128)
    step.batch.load_padding(shape)
    step.forward(shape)
    assert len(places) == NUM_LAYERS
    for index, of_layer in enumerate(places):
        assert (of_layer is not None) == told
        if of_layer is not None:
            caches = of_layer.k_cache.data_ptr(), of_layer.v_cache.data_ptr()
            assert caches == tuple(step.kv_cache[index, part].data_ptr() for part in (0, 1))
