"""What the hardware allows: a streaming read and a matrix product measured here and now, and floors made of them.

Of a model with P parameters in matrices (all of them, embedding table included) of which M take part in matrix
products (all but the table of a model whose embeddings are not tied), and K bytes of keys and values per token:

    decode step of n sequences holding t tokens in all:  max(2 P / read, 2 M n / matrix) + K t / read   seconds
    prefill of n tokens:                                  2 M n / matrix                               seconds

with `read` in bytes and `matrix` in FLOP per second, bfloat16. That is: weights and KV cache are read once a step at the
best read rate, matrix work runs at the measured rate, attention's own arithmetic, norms, sampling, launches and the
host cost nothing. A workload's floor is its whole prompt as prefill and then decode steps with every sequence that
still runs (a closed loop of N: at most N at a time, each in one step's worth of prefill when it enters).
"""

import heapq
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu.workload import Ask

BYTES = 2
"""Of a bfloat16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one device was seen to do."""

    read_bytes_per_s: float
    matrix_flop_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a model costs; see the module's formula."""

    num_parameters: int
    num_matrix_parameters: int
    kv_bytes_per_token: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Work":
        """The work of a `config.json`."""
        hidden, head_dim = config["hidden_size"], config["head_dim"]
        q_size, kv_size = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
        layer = hidden * (2 * q_size + 2 * kv_size) + 3 * hidden * config["intermediate_size"]
        table = config["vocab_size"] * hidden
        matrices = layer * config["num_hidden_layers"] + table
        return cls(
            num_parameters=matrices if config["tie_word_embeddings"] else matrices + table,
            num_matrix_parameters=matrices,
            kv_bytes_per_token=2 * BYTES * kv_size * config["num_hidden_layers"],
        )


class Floor:
    """Least times of one model at given rates."""

    def __init__(self, rates: Rates, config: dict[str, Any]) -> None:
        self._rates = rates
        self._work = Work.of(config)

    def decode_s(self, num_sequences: int, num_tokens: int) -> float:
        """One decode step over sequences that hold `num_tokens` together."""
        work, rates = self._work, self._rates
        read_s = BYTES * work.num_parameters / rates.read_bytes_per_s
        matrix_s = 2 * work.num_matrix_parameters * num_sequences / rates.matrix_flop_per_s
        return max(read_s, matrix_s) + work.kv_bytes_per_token * num_tokens / rates.read_bytes_per_s

    def prefill_s(self, num_tokens: int) -> float:
        """Computing that many prompt tokens."""
        return 2 * self._work.num_matrix_parameters * num_tokens / self._rates.matrix_flop_per_s

    def first_token_s(self, num_computed: int, num_cached: int = 0) -> float:
        """A lone request: its new prompt tokens, or the reads of one step, whichever takes longer."""
        return max(self.prefill_s(num_computed), self.decode_s(1, num_computed + num_cached))

    def workload_s(self, asks: list[Ask], num_streams: int) -> float:
        """A closed loop of `num_streams` over the requests, in order."""
        total_s = self.prefill_s(sum(len(ask.prompt_token_ids) for ask in asks))
        waiting = [(len(ask.prompt_token_ids), ask.num_out) for ask in reversed(asks)]
        ends: list[tuple[int, int]] = []  # (step at which it ends, tokens held then)
        step = num_held = 0
        while waiting or ends:
            while waiting and len(ends) < num_streams:
                prompt_len, num_out = waiting.pop()
                if num_out > 1:  # the first token comes out of the prefill
                    heapq.heappush(ends, (step + num_out - 1, prompt_len + num_out))
                    num_held += prompt_len + 1
            if not ends:
                break
            total_s += self.decode_s(len(ends), num_held)
            step += 1
            num_held += len(ends)
            while ends and ends[0][0] <= step:
                num_held -= heapq.heappop(ends)[1]
        return total_s
