"""The peer at hand: `transformers`, on the same random-weight shapes and the first requests of A and C.

`generate` runs them as one left-padded batch, continuous batching as it schedules them itself. Only the first 64 requests
are used and either is cut off after 30 s, so that a case takes a minute; of a cut-off batch the tokens that were
asked for and made until then count, of continuous batching the finished requests. Model loading and warm-up are not timed.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Everything that is needed is here: nothing may wait for a hub that a machine cannot reach.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.generation import MaxTimeCriteria, StoppingCriteriaList

from benchmarks.gpu import workload
from benchmarks.gpu.floor import Floor
from benchmarks.gpu.model import Model
from benchmarks.gpu.result import Row
from benchmarks.gpu.workload import Ask, Size

_NUM_REQUESTS = 64
_LIMIT_S = 30.0
_NO_TOKEN = -1


class PeerCases:
    """The cases of one model."""

    def __init__(self, model: Model, floor: Floor, size: Size, seed: int) -> None:
        self._model = _load(model)
        self._floor = floor
        self._size = size
        self._seed = seed

    def uniform(self, title: str) -> list[Row]:
        """Workload A."""
        return self._rows(title, workload.uniform(self._size, self._seed)[:_NUM_REQUESTS])

    def chat(self, title: str) -> list[Row]:
        """Workload C."""
        return self._rows(title, workload.chat(self._size, self._seed)[:_NUM_REQUESTS])

    def _rows(self, title: str, asks: list[Ask]) -> list[Row]:
        load = f"first {len(asks)} requests, at most {_LIMIT_S:.0f} s"
        floor = workload.num_tokens_out(asks) / self._floor.workload_s(asks, len(asks))
        rates = {"generate": self._generate(asks)}
        try:
            rates["continuous batching"] = self._continuous_batching(asks)
        except Exception as error:  # noqa: BLE001 — it depends on releases and devices; the suite goes on without it
            print(f"  continuous batching does not run here: {type(error).__name__}: {error}", flush=True)
        return [
            Row(case=f"{title}, transformers {name}", load=load, value=rate, unit="tok/s", floor=floor)
            for name, rate in rates.items()
        ]

    def _generate(self, asks: list[Ask]) -> float:
        """Tokens per second of one padded batch."""
        self._generate_batch(asks[:2], max_new_tokens=4)
        start = time.perf_counter()
        num_steps = self._generate_batch(asks, max_new_tokens=max(ask.num_out for ask in asks))
        seconds = time.perf_counter() - start
        return sum(min(ask.num_out, num_steps) for ask in asks) / seconds

    def _generate_batch(self, asks: list[Ask], max_new_tokens: int) -> int:
        """Returns how many steps were made."""
        longest = max(len(ask.prompt_token_ids) for ask in asks)
        padding = [longest - len(ask.prompt_token_ids) for ask in asks]
        ids = torch.tensor([[0] * pad + ask.prompt_token_ids for pad, ask in zip(padding, asks, strict=True)])
        mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
        output = self._model.generate(
            ids.to(self._model.device),
            attention_mask=mask.to(self._model.device),
            generation_config=_generation_config(asks[0], None, max_new_tokens),
            stopping_criteria=StoppingCriteriaList([MaxTimeCriteria(_LIMIT_S)]),
        )
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output.shape[1] - longest

    def _continuous_batching(self, asks: list[Ask]) -> float:
        """Tokens per second of finished requests."""
        config = _generation_config(asks[0], _NO_TOKEN, max(ask.num_out for ask in asks))
        with self._model.continuous_batching_context_manager(generation_config=config) as manager:
            _finished_tokens(manager, [(ask.prompt_token_ids, 4) for ask in asks[:2]], "warm-up")
            start = time.perf_counter()
            num_tokens = _finished_tokens(
                manager, [(ask.prompt_token_ids, ask.num_out) for ask in asks], "timed"
            )
            return num_tokens / (time.perf_counter() - start)


def _finished_tokens(manager: Any, requests: list[tuple[list[int], int]], name: str) -> int:
    """Runs requests (prompt, output length) until all have ended or time is up."""
    wanted = {f"{name}-{number}": num_out for number, (_, num_out) in enumerate(requests)}
    for request_id, (prompt, num_out) in zip(wanted, requests, strict=True):
        manager.add_request(prompt, request_id=request_id, max_new_tokens=num_out)
    deadline = time.perf_counter() + _LIMIT_S
    num_tokens = 0
    while wanted and time.perf_counter() < deadline:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            num_out = wanted.pop(result.request_id)
            assert len(result.generated_tokens) == num_out, (
                f"{result.request_id} brought another number of tokens"
            )
            num_tokens += num_out
        assert result is not None or manager.is_running(), "continuous batching ended by itself"
    for request_id in wanted:
        manager.cancel_request(request_id)
    if wanted:
        print(f"  continuous batching: {len(wanted)} of {len(requests)} requests were cut off", flush=True)
    return num_tokens


def _generation_config(ask: Ask, eos_token_id: int | None, max_new_tokens: int) -> GenerationConfig:
    temperature = ask.sampling["temperature"]
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    )
    return GenerationConfig(
        eos_token_id=eos_token_id, pad_token_id=0, max_new_tokens=max_new_tokens, **sampling
    )


def _load(model: Model) -> PreTrainedModel:
    """The shape with random weights."""
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder, _default_device("cuda" if on_gpu else "cpu"):
        model.write(Path(folder))
        config = AutoConfig.from_pretrained(folder)
        loaded = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if on_gpu else torch.float32)
    return loaded.eval()


@contextmanager
def _default_device(device: str) -> Iterator[None]:
    with torch.device(device):
        yield
