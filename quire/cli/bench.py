"""`quire bench serve`: loads a running server, over gRPC or the OpenAI API, and reports latencies and throughput."""

import asyncio
import sys
from argparse import Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from quire.bench.arrival import arrival_times_s
from quire.bench.backend import Backend, GrpcBackend, OpenAIBackend
from quire.bench.dataset import Prompt, load_prompts
from quire.bench.load import Run, run_load
from quire.bench.plot import check_plot_is_possible, write_plot
from quire.bench.result import METRICS, details, figures, write_result
from quire.bench.table import show_table
from quire.cli.server_flag import add_tls_flags, tls_of
from quire.config.flag import CommandParser, require
from quire.errors import ConfigError, Unavailable

_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


def run(argv: Sequence[str]) -> int:
    """Parses flags, runs every rate, and reports; the status is 1 when a request failed."""
    words = list(argv)
    if not words or words[0] in ("-h", "--help"):
        print("usage: quire bench serve [flags]\n\n`quire bench serve --help` explains the flags.")
        return 0
    if words[0] != "serve":
        raise ConfigError(f"{words[0]!r} is no benchmark; there is: serve")
    options = _parser().parse_args(words[1:])
    _check(options)
    return asyncio.run(_bench(options))


async def _bench(options: Namespace) -> int:
    backend = _backend(options)
    try:
        await backend.connect()
        prompts = load_prompts(options, as_text=backend.name == "openai-chat")
        await _warm_up(backend, prompts, options.num_warmups)
        runs = [await _run_rate(backend, prompts, rate, options) for rate in options.request_rate]
    finally:
        await backend.close()
    _report(runs, backend, options)
    return 1 if any(trace.error for run in runs for trace in run.traces) else 0


async def _warm_up(backend: Backend, prompts: Sequence[Prompt], num_warmups: int) -> None:
    """One request at least, so that a server that refuses is found out before the load. Raises `Unavailable`."""
    for number in range(max(1, num_warmups)):
        first = backend.read(await backend.ask(prompts[number % len(prompts)], number))
        if first.error:
            raise Unavailable(f"the first request failed: {first.error}")


async def _run_rate(backend: Backend, prompts: Sequence[Prompt], rate: float, options: Namespace) -> Run:
    print(f"{len(prompts)} requests at {rate:g} per second …", file=sys.stderr, flush=True)
    arrivals_s = arrival_times_s(len(prompts), rate, options.burstiness, options.seed)
    return await run_load(
        backend, prompts, arrivals_s, request_rate=rate, max_concurrency=options.max_concurrency
    )


def _report(runs: Sequence[Run], backend: Backend, options: Namespace) -> None:
    percentiles, metrics = _percentiles(options), options.percentile_metrics.split(",")
    results = [figures(run, percentiles, metrics) for run in runs]
    title = f"{backend.model} over {backend.name}, {options.dataset_name} prompts"
    show_table(results, title, sys.stdout)
    failures = [trace.error for run in runs for trace in run.traces if trace.error]
    if failures:
        print(f"{len(failures)} requests failed, the first: {failures[0]}", file=sys.stderr)
    if options.save_result or options.save_detailed:
        if options.save_detailed:
            results = [result | details(run) for result, run in zip(results, runs, strict=True)]
        file = _result_file(options, backend)
        write_result(file, _head(options, backend), results)
        print(f"Figures are in {file}.")
    if options.plot:
        write_plot(Path(options.plot), runs, title)
        print(f"The plot is in {options.plot}.")


def _head(options: Namespace, backend: Backend) -> dict[str, Any]:
    metadata = dict(each.split("=", 1) for each in options.metadata)
    return {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": backend.name,
        "model_id": backend.model,
        "label": options.label,
        "num_prompts": options.num_prompts,
        "burstiness": options.burstiness,
        "max_concurrency": options.max_concurrency,
        **metadata,
    }


def _result_file(options: Namespace, backend: Backend) -> Path:
    if options.result_filename:
        return Path(options.result_dir) / options.result_filename
    label = options.label or backend.name
    rates = "-".join(f"{rate:g}" for rate in options.request_rate)
    model = backend.model.rpartition("/")[2]
    return Path(options.result_dir) / f"{label}-{rates}qps-{model}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"


def _backend(options: Namespace) -> Backend:
    address = options.base_url or options.address or f"{options.host}:{options.port}"
    is_http = address.startswith(("http://", "https://"))
    kind = options.backend or ("openai" if is_http else "grpc")
    if kind != "grpc" and not is_http:
        address = f"http://{address}"
    sampling = {name: value for name in _SAMPLING if (value := getattr(options, name)) is not None}
    if options.ignore_eos:
        sampling["ignore_eos"] = True
    if kind == "grpc":
        return GrpcBackend(address, options.model, sampling, options.api_key, tls=tls_of(options))
    is_chat = kind == "openai-chat"
    return OpenAIBackend(
        address, options.model, sampling, options.api_key, is_chat=is_chat, tls=tls_of(options)
    )


def _percentiles(options: Namespace) -> list[float]:
    try:
        values = [float(each) for each in options.metric_percentiles.split(",")]
    except ValueError as error:
        raise ConfigError(
            f"--metric-percentiles={options.metric_percentiles}: {error}", field="metric_percentiles"
        ) from error
    for value in values:
        require(0 < value <= 100, "metric_percentiles", value, "must be above 0 and at most 100")
    return values


def _check(options: Namespace) -> None:
    for name in (
        "num_prompts",
        "random_input_len",
        "random_output_len",
        "random_vocab_size",
        "max_concurrency",
    ):
        value = getattr(options, name)
        require(value is None or value >= 1, name, value, "must be at least 1")
    for rate in options.request_rate:
        require(rate > 0, "request_rate", rate, "must be above 0")
    require(options.burstiness > 0, "burstiness", options.burstiness, "must be above 0")
    require(
        0 <= options.random_range_ratio < 1,
        "random_range_ratio",
        options.random_range_ratio,
        "must be from 0 to below 1",
    )
    for metric in options.percentile_metrics.split(","):
        require(metric in METRICS, "percentile_metrics", metric, f"must be of {', '.join(METRICS)}")
    for each in options.metadata:
        require("=" in each, "metadata", each, "must be KEY=VALUE")
    _percentiles(options)
    if options.plot:
        check_plot_is_possible()


def _parser() -> CommandParser:
    parser = CommandParser(prog="quire bench serve", description=__doc__)
    _add_server_flags(parser.add_argument_group("server"))
    _add_load_flags(parser.add_argument_group("load"))
    _add_dataset_flags(parser.add_argument_group("dataset"))
    _add_report_flags(parser.add_argument_group("report"))
    return parser


def _add_server_flags(group: Any) -> None:
    group.add_argument(
        "--backend",
        choices=("grpc", "openai", "openai-chat"),
        help="How to ask; by default the address tells.",
    )
    group.add_argument(
        "--base-url", metavar="URL", default="", help="OpenAI API, http://host:port, with or without /v1."
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        default="",
        help="A tokenizer service's gRPC address, or an http:// one.",
    )
    group.add_argument(
        "--host",
        metavar="HOST",
        default="127.0.0.1",
        help="Host, where no address is given (default: %(default)s).",
    )
    group.add_argument(
        "--port",
        metavar="N",
        type=int,
        default=50051,
        help="Port, where no address is given (default: %(default)s).",
    )
    group.add_argument(
        "--model", metavar="NAME", default="", help="Served model name; default: the first that is listed."
    )
    group.add_argument("--api-key", metavar="KEY", default="", help="Key, where the server asks for one.")
    add_tls_flags(group)


def _add_load_flags(group: Any) -> None:
    group.add_argument(
        "--num-prompts", metavar="N", type=int, default=1000, help="Requests per rate (default: %(default)s)."
    )
    group.add_argument(
        "--request-rate",
        metavar="X",
        nargs="+",
        type=float,
        default=[float("inf")],
        help="Requests per second; several make a sweep, inf sends all at once (default: inf).",
    )
    group.add_argument(
        "--burstiness",
        metavar="X",
        type=float,
        default=1.0,
        help="Shape of the gaps between requests: 1 is Poisson, less comes in bursts, more is steadier (default: %(default)s).",
    )
    group.add_argument("--max-concurrency", metavar="N", type=int, help="Most requests open at once.")
    group.add_argument(
        "--num-warmups",
        metavar="N",
        type=int,
        default=1,
        help="Requests before the run, not counted (default: 1).",
    )
    group.add_argument(
        "--seed", metavar="N", type=int, default=0, help="Seed of prompts and arrivals (default: 0)."
    )
    group.add_argument(
        "--ignore-eos", action="store_true", help="Ask for outputs that run to their full length."
    )
    for name in _SAMPLING:
        value_type = int if name == "top_k" else float
        group.add_argument(
            "--" + name.replace("_", "-"), metavar="X", type=value_type, help=f"Sampling parameter {name}."
        )


def _add_dataset_flags(group: Any) -> None:
    group.add_argument(
        "--dataset-name",
        choices=("random", "custom", "sharegpt"),
        default="random",
        help="Random tokens, JSON lines with a `prompt` each, or ShareGPT's conversations (default: %(default)s).",
    )
    group.add_argument(
        "--dataset-path", metavar="FILE", default="", help="The file of a custom or sharegpt dataset."
    )
    group.add_argument("--disable-shuffle", action="store_true", help="Take a file's prompts in their order.")
    group.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        default="",
        help="Directory or hub id of a tokenizer, for random text and for answers' lengths.",
    )
    group.add_argument(
        "--random-input-len",
        metavar="N",
        type=int,
        default=1024,
        help="Tokens per random prompt (default: %(default)s).",
    )
    group.add_argument(
        "--random-output-len",
        metavar="N",
        type=int,
        default=128,
        help="Most tokens out per random prompt (default: %(default)s).",
    )
    group.add_argument(
        "--random-range-ratio",
        metavar="X",
        type=float,
        default=0.0,
        help="Lengths vary by this share either way (default: %(default)s).",
    )
    group.add_argument(
        "--random-prefix-len",
        metavar="N",
        type=int,
        default=0,
        help="Tokens that all random prompts begin with (default: %(default)s).",
    )
    group.add_argument(
        "--random-vocab-size",
        metavar="N",
        type=int,
        default=1000,
        help="Random token ids are below this, without --tokenizer (default: %(default)s).",
    )
    group.add_argument(
        "--custom-output-len",
        metavar="N",
        type=int,
        default=256,
        help="Most tokens out per custom prompt (default: %(default)s).",
    )
    group.add_argument(
        "--sharegpt-output-len",
        metavar="N",
        type=int,
        help="Most tokens out per conversation, instead of its answer's length.",
    )


def _add_report_flags(group: Any) -> None:
    group.add_argument(
        "--percentile-metrics",
        metavar="A,B…",
        default="ttft,tpot,itl",
        help="Of ttft, tpot, itl, e2el (default: %(default)s).",
    )
    group.add_argument(
        "--metric-percentiles",
        metavar="A,B…",
        default="50,99",
        help="Percentiles to report (default: %(default)s).",
    )
    group.add_argument("--save-result", action="store_true", help="Write the figures as JSON.")
    group.add_argument(
        "--save-detailed", action="store_true", help="Write every request's lengths, times and errors too."
    )
    group.add_argument(
        "--result-dir", metavar="DIR", default=".", help="Where the JSON file goes (default: here)."
    )
    group.add_argument(
        "--result-filename",
        metavar="NAME",
        default="",
        help="Its name; default: made of rate, model and time.",
    )
    group.add_argument("--label", metavar="TEXT", default="", help="Name of this run, in the JSON file.")
    group.add_argument(
        "--metadata", metavar="KEY=VALUE", nargs="+", default=[], help="Further facts for the JSON file."
    )
    group.add_argument(
        "--plot",
        metavar="FILE",
        default="",
        help="Draw the figures into this PNG file; needs matplotlib (quire[bench]).",
    )
