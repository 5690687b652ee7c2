"""The figures of a run under the names that `vllm bench serve` gives them, and their file. Knows no server.

TTFT is the time to the first token, TPOT the time per output token after the first, ITL the gap between two messages of
a stream, E2EL the time to the last token; all count from when the client sent the request.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from quire.bench.load import Run
from quire.bench.trace import Trace, percentile

METRICS = ("ttft", "tpot", "itl", "e2el")


def figures(run: Run, percentiles: Sequence[float], metrics: Sequence[str]) -> dict[str, Any]:
    """The figures of one run; latencies in milliseconds."""
    good = [trace for trace in run.traces if not trace.error]
    num_in = sum(trace.num_prompt_tokens for trace in good)
    num_out = sum(trace.num_output_tokens for trace in good)
    result: dict[str, Any] = {
        # JSON has no infinity.
        "request_rate": run.request_rate if run.request_rate != float("inf") else "inf",
        "duration": run.duration_s,
        "completed": len(good),
        "failed": len(run.traces) - len(good),
        "total_input_tokens": num_in,
        "total_output_tokens": num_out,
        "request_throughput": len(good) / run.duration_s,
        "output_throughput": num_out / run.duration_s,
        "total_token_throughput": (num_in + num_out) / run.duration_s,
        "max_concurrent_requests": run.max_concurrent,
    }
    for metric in metrics:
        values_ms = sorted(1000 * value for value in values_s(good, metric))
        result[f"mean_{metric}_ms"] = fmean(values_ms) if values_ms else 0.0
        result[f"median_{metric}_ms"] = median(values_ms) if values_ms else 0.0
        result[f"std_{metric}_ms"] = pstdev(values_ms) if values_ms else 0.0
        for percent in percentiles:
            result[f"p{percent:g}_{metric}_ms"] = percentile(values_ms, percent)
    return result


def values_s(traces: Sequence[Trace], metric: str) -> list[float]:
    """Every value of a metric, in seconds."""
    match metric:
        case "ttft":
            return [trace.ttft_s for trace in traces]
        case "e2el":
            return [trace.e2el_s for trace in traces]
        case "tpot":
            return [trace.tpot_s for trace in traces if trace.num_output_tokens > 1]
        case _:
            return [gap for trace in traces for gap in trace.itls_s]


def details(run: Run) -> dict[str, Any]:
    """What happened to each request, in the order of the prompts."""
    return {
        "input_lens": [trace.num_prompt_tokens for trace in run.traces],
        "output_lens": [trace.num_output_tokens for trace in run.traces],
        "ttfts": [trace.ttft_s if trace.times_s else None for trace in run.traces],
        "itls": [trace.itls_s for trace in run.traces],
        "errors": [trace.error for trace in run.traces],
    }


def write_result(file: Path, head: dict[str, Any], runs: Sequence[dict[str, Any]]) -> None:
    """One run's figures as one object, as vLLM writes them; those of a sweep as `runs` in it."""
    document = head | runs[0] if len(runs) == 1 else head | {"runs": list(runs)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=1) + "\n")
