"""The GPU suite, tried where no GPU is: workloads as they are defined, floors as they are published, figures that add up."""

from pathlib import Path
from statistics import mean

import pytest
from quire_tokenizer.text_codec import load_text_codec

from benchmarks.gpu import workload
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.agreement.conservation import check_conservation
from benchmarks.gpu.floor import Floor, Rates
from benchmarks.gpu.model import LLAMA_3_1_8B, MODELS, QWEN3_0_6B, tiny
from benchmarks.gpu.result import FRONT_DOOR, SHARE_OF_WORKER, Row, merge_rows, read_rows, table
from benchmarks.gpu.sse_stream import SseStreams
from benchmarks.gpu.trace import Summary, Trace
from benchmarks.gpu.worker_alone import WorkerAlone
from benchmarks.gpu.worker_case import WorkerCases
from benchmarks.gpu.workload import Ask, Size

_H200 = Rates(read_bytes_per_s=4.53e12, matrix_flop_per_s=780e12)
_REAL = Size(vocab_size=1000)


def _lengths(asks: list[Ask]) -> tuple[list[int], list[int]]:
    return [len(ask.prompt_token_ids) for ask in asks], [ask.num_out for ask in asks]


@pytest.mark.parametrize("seed", [1, 2])
def test_workloads_have_their_lengths(seed: int) -> None:
    prompts, outputs = _lengths(workload.chat(_REAL, seed))
    assert len(prompts) == 1000
    assert min(prompts + outputs) >= 4
    assert max(prompts + outputs) <= 1024
    assert mean(prompts) == pytest.approx(220, abs=1)
    assert mean(outputs) == pytest.approx(190, abs=1)
    prompts, outputs = _lengths(workload.uniform(_REAL, seed))
    assert len(prompts) == 256
    assert min(prompts + outputs) >= 100
    assert mean(prompts + outputs) == pytest.approx(562, abs=40)
    assert _lengths(workload.prefill(_REAL, seed)) == ([2048] * 16, [1] * 16)


def test_another_seed_is_another_workload() -> None:
    assert _lengths(workload.chat(_REAL, 1)) == _lengths(workload.chat(_REAL, 1))
    assert _lengths(workload.chat(_REAL, 1)) != _lengths(workload.chat(_REAL, 2))


def test_floors_are_the_published_ones_at_the_rates_of_an_h200() -> None:
    small, large = Floor(_H200, QWEN3_0_6B.config), Floor(_H200, LLAMA_3_1_8B.config)
    uniform, chat = workload.uniform(_REAL, 1), workload.chat(_REAL, 1)
    assert workload.num_tokens_out(uniform) / small.workload_s(uniform, 256) == pytest.approx(
        38_100, rel=0.03
    )
    assert workload.num_tokens_out(chat) / small.workload_s(chat, 1000) == pytest.approx(71_200, rel=0.03)
    assert workload.num_tokens_out(chat) / large.workload_s(chat, 1000) == pytest.approx(15_600, rel=0.03)
    assert 1000 * large.decode_s(1, 256) == pytest.approx(3.55, abs=0.01)
    assert 1000 * large.decode_s(1, 32_000) == pytest.approx(4.47, abs=0.01)
    assert 1000 * large.decode_s(16, 16 * 8_000) == pytest.approx(7.25, abs=0.01)
    assert 2048 / large.prefill_s(2048) == pytest.approx(52_000, rel=0.01)


def test_closed_loop_of_one_costs_the_sum_of_lone_requests() -> None:
    floor = Floor(_H200, QWEN3_0_6B.config)
    asks = [Ask(prompt_token_ids=[0] * length, num_out=3, seed=0) for length in (5, 9)]
    lone = sum(floor.prefill_s(n) + floor.decode_s(1, n + 1) + floor.decode_s(1, n + 2) for n in (5, 9))
    assert floor.workload_s(asks, 1) == pytest.approx(lone)


def test_summary_counts_gaps_and_merged_messages() -> None:
    traces = [
        Trace(sent_s=10.0, times_s=[10.5, 11.0, 13.0], counts=[1, 1, 2], num_chars=4),
        Trace(sent_s=11.0, times_s=[11.1], counts=[1], num_chars=1),
    ]
    summary = Summary(traces)
    assert (summary.num_tokens, summary.num_messages, summary.seconds) == (5, 4, 3.0)
    assert summary.merged_share == 0.25
    assert summary.ttft_s(99) == pytest.approx(0.5)
    assert (summary.itl_s(0), summary.itl_s(99)) == (0.5, 2.0)


def test_a_stream_of_events_is_taken_apart_after_the_run() -> None:
    texts = ['{"choices": [{"text": "a"}]}', '{"choices": [{"text": "bc"}]}']
    usage = '{"choices": [], "usage": {"completion_tokens": 3}}'
    chunks = [f"data: {event}\n\n".encode() for event in (*texts, usage, "[DONE]")]
    first, *rest = [b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]
    pieces = [b"HTTP/1.1 200 OK\r\n\r\n" + first, b"".join(rest) + b"0\r\n\r\n"]
    trace = SseStreams.trace(1.0, [2.0, 3.0], pieces)
    assert (trace.times_s, trace.counts, trace.num_chars) == ([2.0, 3.0], [1, 2], 3)
    with pytest.raises(ValueError, match="400 Bad"):
        SseStreams.trace(1.0, [2.0], [b"HTTP/1.1 400 Bad Request\r\n\r\n"])


def test_a_row_replaces_its_predecessor_and_shares_follow(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    alone = Row(case="B", load="256 streams", value=200.0, unit="tok/s", floor=400.0, commit="a")
    served = Row(case="B" + FRONT_DOOR, load="256 streams", value=190.0, unit="tok/s", commit="a")
    merge_rows(file, [Row(case="B", load="256 streams", value=1.0, unit="tok/s", commit="a"), served])
    merge_rows(file, [alone])
    rows = {row.case: row for row in read_rows(file)}
    assert rows["B"] == alone
    assert rows["B"].share == 0.5
    assert rows["B" + FRONT_DOOR + SHARE_OF_WORKER].value == 95.0


@pytest.mark.parametrize("name", list(MODELS))
def test_tokenizer_covers_the_vocabulary_with_distinct_tokens(name: str, tmp_path: Path) -> None:
    MODELS[name].write(tmp_path)
    codec = load_text_codec(str(tmp_path), None, None)
    assert codec.vocab_size == MODELS[name].vocab_size
    last = codec.vocab_size - 1
    assert codec.decode([last], skip_special_tokens=True) != codec.decode(
        [last - 1], skip_special_tokens=True
    )


def test_worker_alone_measures_a_tiny_model() -> None:
    model = tiny(LLAMA_3_1_8B)
    size = Size(vocab_size=model.vocab_size, tiny=True)
    cases = WorkerCases(WorkerAlone(model), Floor(_H200, model.config), size, seed=1, repeats=1)
    rows = [
        *cases.single("D"),
        *cases.prefill("E"),
        *cases.chat("C"),
        *cases.cached_prompt("P"),
        *cases.structured("S"),
    ]
    assert len(rows) == 2 + 1 + 5 + 3 + 2
    assert all(row.value > 0 for row in rows)


def test_a_table_does_not_round_a_miss_away() -> None:
    assert "| 1.155 | x |" in table([Row(case="P, ratio", load="cached", value=1.1549, unit="x")])


def test_closed_loops_are_those_asked_for() -> None:
    model = tiny(LLAMA_3_1_8B)
    size = Size(vocab_size=model.vocab_size, tiny=True)
    cases = WorkerCases(
        WorkerAlone(model), Floor(_H200, model.config), size, seed=1, repeats=1, streams=(256, 1)
    )
    assert [row.load for row in cases.chat_warmed("C")] == ["16 streams", "1 stream"]
    with pytest.raises(SystemExit):
        main(["C", "--streams", "0"])


def test_blocks_are_conserved_over_random_requests_and_aborts() -> None:
    (outcome,) = check_conservation(num_requests=400)
    assert outcome.passed, outcome.detail
