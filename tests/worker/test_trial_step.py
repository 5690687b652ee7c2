"""What the worker makes of the largest step's trial, with a step whose memory is known instead of a device."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from quire_worker.step_shape import StepShape
from quire_worker.trial_step import measured_step_bytes

from quire.config import WorkerConfig
from quire.errors import ConfigError

_LARGEST = StepShape(4096, 300, False, 1000)


class _Memory:
    """A device on which a step takes 1,000 bytes a token and 5,000 a row."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.peak = 0
        self.loaded: StepShape | None = None
        self.batch: Any = SimpleNamespace(load_padding=self.load)

    def load(self, shape: StepShape) -> None:
        self.loaded = shape

    def run(self, shape: StepShape) -> None:
        assert self.loaded == shape
        needed = 1000 * shape.num_tokens + 5000 * shape.num_rows
        if needed > self.room:
            raise torch.OutOfMemoryError
        self.peak = max(self.peak, needed)

    def forget(self) -> None:
        self.peak = 0


def _memory(room: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    memory = _Memory(room)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", memory.forget)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 70)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 70 + memory.peak)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return memory


def test_steps_need_their_peak_and_captured_ones_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = _memory(10_000_000, monkeypatch)
    peak = 4096 * 1000 + 300 * 5000
    assert measured_step_bytes(memory, _LARGEST, WorkerConfig(enforce_eager=True)) == peak
    assert measured_step_bytes(memory, _LARGEST, WorkerConfig()) == 2 * peak + 512 * 2**20


@pytest.mark.parametrize(("room", "fits"), [
    (4_000_000, "one of 2048 tokens and 300 sequences fits"), (2_000_000, "one of 256 tokens and 256 sequences fits"),
    (6000, "one of 1 tokens and 1 sequences fits"), (5999, "not even one of a single token fits"),
])  # fmt: skip
def test_step_that_does_not_fit_names_one_that_does(
    room: int, fits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WorkerConfig(max_num_batched_tokens=4096, max_num_seqs=300)
    wanted = rf"^--max-num-batched-tokens=4096 and --max-num-seqs=300: .* {fits}$"
    with pytest.raises(ConfigError, match=wanted):
        measured_step_bytes(_memory(room, monkeypatch), _LARGEST, config)
