"""The workloads: who asks for how much. Random token ids, lengths fixed by a seed. Knows no engine and no clock.

A: 256 requests, prompts and outputs uniform in 100…1,024, temperature 0.6. B and C: 1,000 chat-like requests, greedy,
log-normal lengths (sigma 1.1 in, 0.9 out) clipped to 4…1,024 and scaled to means of 220 and 190. D: one request, 128 in,
256 out, greedy. E: 16 prompts of 2,048 tokens, one token out. S: 128 requests for 64 streams, 128 in, 256 out, temperature
0.6, as free text and under a JSON schema whose array cannot end so early: both bring 256 tokens each.
"""

import json
import random
from dataclasses import dataclass, field, replace
from typing import Any

SHORTEST, LONGEST = 4, 1024
TINY_DIVISOR = 16
"""By how much `--tiny` shortens prompts and outputs."""
STREAMS = (1000, 256, 1)
"""Closed loops of the chat-like workloads: this many requests at a time."""
NUM_LONE_REQUESTS = 20
"""One-stream rows use this many of a workload's first requests."""

SAMPLED: dict[str, Any] = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 50,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
}
"""A with every mask and penalty that users set."""


NUM_STRUCTURED_STREAMS = 64

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "colour": {"enum": ["red", "green", "blue"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
            "active": {"type": "boolean"},
        },
        "required": ["name", "age", "colour", "tags", "active"],
        "additionalProperties": False,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request: its prompt, the length its output is forced to, and how tokens are drawn."""

    prompt_token_ids: list[int]
    num_out: int
    seed: int
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0})
    """Names of SamplingParams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large workloads are made: the real ones, or tiny ones that run anywhere."""

    vocab_size: int
    tiny: bool = False

    def length(self, num_tokens: int) -> int:
        """A prompt or output length at this size."""
        return max(2, num_tokens // TINY_DIVISOR) if self.tiny else num_tokens

    def count(self, num_requests: int) -> int:
        """A number of requests at this size."""
        return max(1, num_requests // TINY_DIVISOR) if self.tiny else num_requests


def uniform(size: Size, seed: int, sampling: dict[str, Any] | None = None) -> list[Ask]:
    """Workload A."""
    draw = random.Random(seed)
    lengths = [(draw.randint(100, 1024), draw.randint(100, 1024)) for _ in range(size.count(256))]
    return _asks(size, draw, lengths, sampling or {"temperature": 0.6})


def chat(size: Size, seed: int) -> list[Ask]:
    """Workloads B and C."""
    draw = random.Random(seed)
    columns = [_log_normal(draw, sigma, mean, size.count(1000)) for sigma, mean in ((1.1, 220), (0.9, 190))]
    return _asks(size, draw, list(zip(*columns, strict=True)), {"temperature": 0.0})


def closed_loops(size: Size, seed: int, streams: tuple[int, ...]) -> list[tuple[int, str, list[Ask]]]:
    """Workloads B and C in closed loops: how many requests at a time, how the load is called, and the requests."""
    asks = chat(size, seed)
    loops: list[tuple[int, str, list[Ask]]] = []
    for wanted in streams:
        if wanted == 1:
            loops.append((1, "1 stream", asks[:NUM_LONE_REQUESTS]))
        else:
            num_streams = size.count(wanted)
            loops.append((num_streams, f"{num_streams} streams", asks))
    return loops


def single(size: Size, seed: int) -> list[Ask]:
    """Workload D."""
    return _asks(size, random.Random(seed), [(128, 256)], {"temperature": 0.0})


def prefill(size: Size, seed: int) -> list[Ask]:
    """Workload E."""
    return [
        replace(ask, num_out=1)
        for ask in _asks(size, random.Random(seed), [(2048, 2)] * 16, {"temperature": 0.0})
    ]


def structured(size: Size, seed: int, *, free: bool) -> list[Ask]:
    """Workload S; with `free` as free text."""
    constraint = {} if free else {"structured_outputs": {"json": json.dumps(SCHEMA)}}
    lengths = [(128, 256)] * size.count(2 * NUM_STRUCTURED_STREAMS)
    return _asks(size, random.Random(seed), lengths, {"temperature": 0.6} | constraint)


def long_context(size: Size, seed: int, batch: int, context: int, num_out: int) -> list[Ask]:
    """`batch` requests whose decode steps run at `context` tokens, on average over `num_out` of them."""
    prompt_len = size.length(context) - num_out // 2
    draw = random.Random(seed)
    return [
        Ask(prompt_token_ids=_tokens(draw, size, prompt_len), num_out=num_out, seed=number)
        for number in range(batch)
    ]


def shared_prefix(size: Size, seed: int) -> tuple[list[int], list[int], list[int]]:
    """A prefix of 3,840 tokens, 256 tokens to end it with, and 256 tokens that follow nothing."""
    draw = random.Random(seed)
    prefix_len, tail_len = size.length(3840), size.length(256)
    return _tokens(draw, size, prefix_len), _tokens(draw, size, tail_len), _tokens(draw, size, tail_len)


def num_tokens_out(asks: list[Ask]) -> int:
    """Tokens that a workload must bring."""
    return sum(ask.num_out for ask in asks)


def _asks(
    size: Size, draw: random.Random, lengths: list[tuple[int, int]], sampling: dict[str, Any]
) -> list[Ask]:
    return [
        Ask(
            prompt_token_ids=_tokens(draw, size, size.length(num_in)),
            num_out=size.length(num_out),
            seed=number,
            sampling=sampling,
        )
        for number, (num_in, num_out) in enumerate(lengths)
    ]


def _tokens(draw: random.Random, size: Size, num_tokens: int) -> list[int]:
    return draw.choices(range(size.vocab_size), k=num_tokens)


def _log_normal(draw: random.Random, sigma: float, mean: int, num_values: int) -> list[int]:
    """Clipped, then scaled until the mean is right as the clip allows."""
    raw = [draw.lognormvariate(0.0, sigma) for _ in range(num_values)]
    scale = float(mean)
    lengths: list[int] = []
    for _ in range(50):
        lengths = [min(LONGEST, max(SHORTEST, round(scale * value))) for value in raw]
        scale *= mean / (sum(lengths) / len(lengths))
    return lengths
