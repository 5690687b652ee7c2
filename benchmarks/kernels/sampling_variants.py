"""What each way of sampling costs beside greedy, per step: checked against the reference, then timed in one graph.

Run on a GPU: ``PYTHONPATH=kernels python benchmarks/kernels/sampling_variants.py``. 256 rows of Qwen3's vocabulary in
the type that the projection writes. "flat" logits are those of random weights, whose nuclei hold most tokens.
"""

from dataclasses import replace

import torch
from quire_kernels import BiasTable, OccurrenceTable, Penalties, SamplingTensors, sample, token_logprobs
from quire_kernels.sampling import reference
from torch import Tensor

ROWS, VOCAB, LAUNCHES, CHECKED = 256, 151_936, 10, 16


def graph_us(run: object) -> float:
    """Return the best of three replays, per launch."""
    assert callable(run)
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    graph.replay()
    times = []
    for _ in range(3):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / LAUNCHES)
    return min(times)


def column(value: float, dtype: torch.dtype = torch.float32, rows: int = ROWS) -> Tensor:
    return torch.full((rows,), value, dtype=dtype, device="cuda")


def parameters(temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> SamplingTensors:
    return SamplingTensors(
        temperature=column(temperature),
        top_k=column(top_k, torch.int32),
        top_p=column(top_p),
        min_p=column(min_p),
        seed=torch.arange(ROWS, device="cuda"),
        sequence_index=column(0, torch.int32),
        position=column(700, torch.int32),
    )


def penalised_slots() -> Penalties:
    table = OccurrenceTable(ROWS, VOCAB, torch.device("cuda"))
    tokens = [torch.randint(VOCAB, (1000,)).tolist() for _ in range(ROWS)]
    table.admit(list(range(ROWS)), tokens, [500] * ROWS)
    return Penalties(
        slots=torch.arange(ROWS, dtype=torch.int32, device="cuda"),
        repetition=column(1.1),
        frequency=column(0.2),
        presence=column(0.1),
        occurrences=table,
        biases=BiasTable(ROWS, VOCAB, torch.device("cuda")),
    )


def share_equal(logits: Tensor, params: SamplingTensors, penalties: Penalties | None) -> float:
    """Return the share of the first rows whose draw is the reference's (penalties change with every draw)."""
    first = torch.arange(CHECKED, device="cuda")
    expected = logits[:CHECKED]
    if penalties is not None:
        expected = reference.penalise(expected, replace(penalties, slots=penalties.slots[:CHECKED]))
    expected = reference.sample(expected, params.rows(first))
    return float((sample(logits, params, penalties=penalties)[:CHECKED] == expected).double().mean())


def main() -> None:
    torch.manual_seed(0)
    flat = torch.randn(ROWS, VOCAB, device="cuda").to(torch.bfloat16)
    peaked = (torch.randn(ROWS, VOCAB, device="cuda") * 2.5).to(torch.bfloat16)
    penalties = penalised_slots()
    every = parameters(0.6, top_k=50, top_p=0.9)
    for name, logits, params, weighed in (
        ("greedy", peaked, parameters(0.0), None),
        ("temperature", peaked, parameters(0.6), None),
        ("top-k 50", peaked, parameters(0.6, top_k=50), None),
        ("top-k 50, top-p 0.9", peaked, every, None),
        ("top-k 50, top-p 0.9, flat", flat, every, None),
        ("penalties, greedy", peaked, parameters(0.0), penalties),
        ("top-k 50, top-p 0.9, penalties", peaked, every, penalties),
        ("top-k 50, top-p 0.9, penalties, flat", flat, every, penalties),
        ("min-p 0.05", peaked, parameters(0.6, min_p=0.05), None),
        ("top-p 0.9", peaked, parameters(0.6, top_p=0.9), None),
        ("top-p 0.9, flat (whole rows searched)", flat, parameters(0.6, top_p=0.9), None),
        ("top-p 0.9, penalties, flat (whole rows searched)", flat, parameters(0.6, top_p=0.9), penalties),
    ):
        equal = share_equal(logits, params, weighed)
        us = graph_us(
            lambda logits=logits, params=params, weighed=weighed: sample(logits, params, penalties=weighed)
        )
        print(f"{us:8.1f} us  {equal:4.0%} as the reference  {name}", flush=True)
    tokens = sample(peaked, every)
    for num_top in (0, 5):
        us = graph_us(lambda num_top=num_top: token_logprobs(peaked, tokens, num_top))
        print(f"{us:8.1f} us  log-probabilities with {num_top} alternatives", flush=True)


if __name__ == "__main__":
    main()
