"""The arithmetic of `quire bench serve`: arrivals, datasets and figures, without a server."""

import json
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pvariance

import pytest

from quire.assets import shipped_model_path
from quire.bench.arrival import arrival_times_s
from quire.bench.dataset import load_prompts
from quire.bench.load import Run
from quire.bench.result import details, figures
from quire.bench.trace import Trace
from quire.cli.bench import _parser, run
from quire.errors import ConfigError


def _options(*flags: str) -> Namespace:
    return _parser().parse_args(list(flags))


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_between_arrivals_have_the_mean_and_the_burstiness_asked_for(burstiness: float) -> None:
    times_s = arrival_times_s(20_000, 10.0, burstiness, seed=1)
    gaps_s = [after - before for before, after in pairwise(times_s)]
    mean = fmean(gaps_s)
    assert mean == pytest.approx(0.1, rel=0.05)
    assert pvariance(gaps_s) / mean**2 == pytest.approx(1 / burstiness, rel=0.1)
    assert times_s == arrival_times_s(20_000, 10.0, burstiness, seed=1)
    assert times_s != arrival_times_s(20_000, 10.0, burstiness, seed=2)


def test_at_an_infinite_rate_all_arrive_at_once() -> None:
    assert arrival_times_s(3, float("inf"), 1.0, 0) == [0.0, 0.0, 0.0]


def _trace(sent_s: float, times_s: list[float], num_out: int, error: str = "") -> Trace:
    return Trace(
        sent_s=sent_s,
        times_s=times_s,
        counts=[1] * len(times_s),
        num_chars=1,
        num_prompt_tokens=10,
        num_output_tokens=num_out,
        error=error,
    )


def test_figures_are_those_of_the_requests_that_succeeded() -> None:
    traces = [
        _trace(0.0, [0.1, 0.2, 0.4], num_out=4),
        _trace(1.0, [1.3], num_out=1),
        _trace(0.0, [], num_out=0, error="broken"),
    ]
    run_ = Run(request_rate=float("inf"), traces=traces, duration_s=2.0, max_concurrent=2)
    seen = figures(run_, [50.0, 99.0], ["ttft", "tpot", "itl", "e2el"])
    assert (seen["completed"], seen["failed"]) == (2, 1)
    assert (seen["total_input_tokens"], seen["total_output_tokens"]) == (20, 5)
    assert (seen["request_throughput"], seen["output_throughput"]) == (1.0, 2.5)
    assert seen["mean_ttft_ms"] == pytest.approx(200)
    assert seen["p99_ttft_ms"] == pytest.approx(300)
    assert seen["mean_tpot_ms"] == pytest.approx(100)  # the single token has none
    assert seen["median_itl_ms"] == pytest.approx(150)
    assert seen["p99_e2el_ms"] == pytest.approx(400)
    assert json.loads(json.dumps(seen))["request_rate"] == "inf"
    assert details(run_)["errors"] == ["", "", "broken"]


def test_random_prompts_have_the_lengths_asked_for() -> None:
    flags = "--num-prompts 50 --random-input-len 40 --random-output-len 20 --random-range-ratio 0.5"
    prompts = load_prompts(_options(*flags.split(), "--random-prefix-len", "8"), as_text=False)
    lengths = [len(prompt.token_ids or ()) for prompt in prompts]
    assert len(prompts) == 50
    assert min(lengths) >= 28 and max(lengths) <= 68 and len(set(lengths)) > 10
    assert {prompt.num_out for prompt in prompts} <= set(range(10, 31))
    assert len({tuple((prompt.token_ids or ())[:8]) for prompt in prompts}) == 1
    assert prompts == load_prompts(_options(*flags.split(), "--random-prefix-len", "8"), as_text=False)


def test_files_of_prompts_are_read_and_repeated(tmp_path: Path) -> None:
    custom = tmp_path / "prompts.jsonl"
    custom.write_text('{"prompt": "a", "output_tokens": 3}\n\n{"prompt": "b"}\n')
    flags = ["--dataset-path", str(custom), "--dataset-name", "custom", "--num-prompts", "3"]
    prompts = load_prompts(_options(*flags, "--disable-shuffle"), as_text=False)
    assert [(prompt.text, prompt.num_out) for prompt in prompts] == [("a", 3), ("b", 256), ("a", 3)]

    conversations = tmp_path / "sharegpt.json"
    turns = [{"value": "Who is it?"}, {"value": "Romeo, a Montague."}]
    conversations.write_text(json.dumps([{"conversations": turns}, {"conversations": turns[:1]}]))
    flags = ["--dataset-path", str(conversations), "--dataset-name", "sharegpt", "--num-prompts", "1"]
    (prompt,) = load_prompts(_options(*flags, "--tokenizer", str(shipped_model_path())), as_text=False)
    assert prompt.text == "Who is it?" and 3 <= prompt.num_out <= 12
    with pytest.raises(ConfigError, match="needs --sharegpt-output-len"):
        load_prompts(_options(*flags), as_text=False)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--request-rate 1 0", "--request-rate=0.0: must be above 0"),
        ("--num-prompts 0", "--num-prompts=0: must be at least 1"),
        ("--percentile-metrics ttft,speed", "--percentile-metrics=speed: must be of ttft, tpot, itl, e2el"),
        ("--metric-percentiles 50,x", "--metric-percentiles=50,x"),
        ("--burstiness 0", "--burstiness=0.0: must be above 0"),
        ("--metadata a", "--metadata=a: must be KEY=VALUE"),
        ("--max-concurrency 0", "--max-concurrency=0: must be at least 1"),
        ("--random-range-ratio 1", "--random-range-ratio=1.0: must be from 0"),
    ],
)
def test_a_bad_flag_is_refused_by_name(flags: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(["serve", *flags.split()])
    assert message in caught.value.message
