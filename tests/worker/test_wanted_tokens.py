"""The last layer may attend for the wanted tokens alone: what comes out is what all of its queries would have brought.

On a CPU weights are packed, and cannot be cut: here they are left as they were.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from quire_kernels import pack_linear_weight
from quire_scheduler.core import Sampling
from quire_worker.loading import LoadedModel
from quire_worker.model import decoder, wanted_tokens, weights
from quire_worker.model.step_inputs import StepInputs
from quire_worker.step_shape import StepShape
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.worker.driver import Driver
from tests.worker.tiny_model import MAX_MODEL_LEN, VOCAB_SIZE, load_tiny, make_tiny_model, step_over

_TOLERANCE = 1e-4
_WINDOW = 48


@pytest.fixture(autouse=True)
def _unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "pack_linear_weight", torch.nn.Identity())


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"attention_bias": True}),
        ("mistral", {"sliding_window": _WINDOW}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": _WINDOW, "max_window_layers": 1}),
    ],
    ids=["llama", "mistral", "qwen3"],
)
def test_narrow_last_layer_brings_what_the_whole_one_does(
    family: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(tmp_path, family, **settings)
    loaded = load_tiny(tmp_path, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=256)
    narrowed = _count_narrowed(monkeypatch)
    whole = _brought(loaded)
    assert narrowed == []
    monkeypatch.setattr(wanted_tokens, "_MANY_TOKENS", 1)
    monkeypatch.setattr(wanted_tokens, "_TOKENS_PER_WANTED", 1)
    narrow = _brought(loaded)
    assert len(narrowed) >= 4
    assert narrow.keys() == whole.keys()
    for key, (tokens, logprobs) in whole.items():
        assert narrow[key][0] == tokens
        torch.testing.assert_close(narrow[key][1], logprobs, rtol=0, atol=_TOLERANCE)


def test_few_tokens_for_each_that_is_wanted_are_not_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_model(tmp_path, "llama")
    loaded = load_tiny(tmp_path, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=256)
    narrowed = _count_narrowed(monkeypatch)
    monkeypatch.setattr(wanted_tokens, "_MANY_TOKENS", 64)
    driver = Driver.of(loaded)
    driver.generate([([3] * 7, Sampling(max_tokens=1)) for _ in range(20)])
    assert narrowed == []
    driver.generate([([4] * 33, Sampling(max_tokens=1)) for _ in range(4)])
    assert narrowed == [(132, 4)]


@pytest.mark.parametrize(("num_layers", "narrowed_steps"), [(1, []), (2, [(64, 4)])])
def test_a_step_of_padding_alone_may_be_narrowed_where_a_layer_lies_before_the_last(
    num_layers: int, narrowed_steps: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such steps are taken before graphs are captured; their rows want the logits of a token of no sequence."""
    make_tiny_model(tmp_path, "llama")
    step = step_over(tmp_path, num_layers=num_layers)
    narrowed = _count_narrowed(monkeypatch)
    monkeypatch.setattr(wanted_tokens, "_MANY_TOKENS", 64)
    shape = StepShape(64, 4, False, 128)
    step.batch.load_padding(shape)
    step.forward(shape)
    assert narrowed == narrowed_steps
    assert step.logits(4).isfinite().all()
    assert not step.kv_cache[:, :, 1:].any(), "what is not scratch was written"


def test_packed_weights_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tiny_model(tmp_path, "llama")
    monkeypatch.setattr(weights, "pack_linear_weight", pack_linear_weight)
    monkeypatch.setattr(wanted_tokens, "_MANY_TOKENS", 64)
    narrowed = _count_narrowed(monkeypatch)
    step, shape = step_over(tmp_path, num_layers=2), StepShape(64, 4, False, 128)
    step.batch.load_padding(shape)
    step.forward(shape)
    assert narrowed == ([] if pack_linear_weight(torch.zeros(64, 64)).is_mkldnn else [(64, 4)])


def test_positions_are_settled_before_the_queries_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotation of the queries reads them before its own wait: a lookup, an ordinary launch, must lie between."""
    make_tiny_model(tmp_path, "llama")
    loaded = load_tiny(tmp_path, max_model_len=MAX_MODEL_LEN, num_gpu_blocks_override=256)
    monkeypatch.setattr(wanted_tokens, "_MANY_TOKENS", 64)
    looked_up: list[int] = []

    def noted(*arguments: Any, **options: Any) -> Tensor:
        with _NotedLookups(looked_up):
            return wanted_tokens.attend_for_wanted(*arguments, **options)

    monkeypatch.setattr(decoder, "attend_for_wanted", noted)
    Driver.of(loaded).generate([([4] * 80, Sampling(max_tokens=1))])
    assert looked_up[:2] == [1, 2]


class _NotedLookups(TorchDispatchMode):
    """Notes the number of dimensions of what is looked up."""

    def __init__(self, looked_up: list[int]) -> None:
        super().__init__()
        self._looked_up = looked_up

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_select.default:
            self._looked_up.append(args[0].dim())
        return func(*args, **(kwargs or {}))


def _count_narrowed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Fills up with (tokens, wanted ones) of the narrowed steps."""
    narrowed: list[tuple[int, int]] = []

    def counted(layer: Any, normed: Tensor, inputs: StepInputs, kv: Tensor, **rest: Any) -> Tensor:
        assert inputs.logits_rows is not None
        narrowed.append((len(normed), len(inputs.logits_rows)))
        return wanted_tokens.attend_for_wanted(layer, normed, inputs, kv, **rest)

    monkeypatch.setattr(decoder, "attend_for_wanted", counted)
    return narrowed


def _brought(loaded: LoadedModel) -> dict[tuple[int, int], tuple[list[int], Tensor]]:
    """Tokens and log-probabilities by (handle, index); those of prompts under index -1. Chunks, children, decoding beside
    prompts, and reports on prompts are all among the steps.
    """
    draw = random.Random(3)
    driver = Driver.of(loaded, max_num_batched_tokens=160)
    for number, length in enumerate((1, 2, 17, 64, 150, 161, 400, 90)):
        prompt = [draw.randrange(VOCAB_SIZE) for _ in range(length)]
        driver.add(
            prompt,
            Sampling(
                n=3 if number % 3 == 2 else 1,
                max_tokens=12,
                temperature=0.7 if number % 3 == 2 else 0.0,
                seed=number,
                num_logprobs=1,
                num_prompt_logprobs=1 if number in (3, 6) else -1,
            ),
        )
    brought: dict[tuple[int, int], tuple[list[int], Tensor]] = {}
    for key, output in driver.run().items():
        entries = zip(output.logprobs, output.token_ids, strict=True)
        brought[key] = output.token_ids, torch.tensor([entry[token] for entry, token in entries])
    for handle, entries in driver.prompt_logprobs.items():
        brought[handle, -1] = (
            [token for each in entries for token, _, _ in each],
            torch.tensor([logprob for each in entries for _, logprob, _ in each]),
        )
    return brought
